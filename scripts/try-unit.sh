#!/usr/bin/env bash
# Runs the shipped unit, with all of its restrictions, under a real systemd: start, reload, a hung daemon, stop.
#
# systemd is the first process in separate namespaces: the files of this host below a temporary layer, no network, and none of this host's
# services. This requires root and the package that `scripts/package.sh --build-only` builds.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() { printf 'SKIPPED: %s; the unit is not tried\n' "$*"; exit 0; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

package=target/package/billing-daemon.deb
systemd=/lib/systemd/systemd
group=billing-daemon-unit

# Inside: the behaviour of the service, as systemd reports it.
if [[ ${1:-} = --inside ]]; then
    expect() { [[ $2 = "$3" ]] || { echo "error: $1 is \`$2\`, and should be \`$3\`"; exit 1; }; }
    of_unit() { systemctl show --property "$1" --value billing-daemon; }
    address='sqlite:///var/lib/billing-daemon/billing.db?mode=rwc'
    echo "$address" >/etc/billing-daemon/database-url
    runuser -u billing-daemon -- env DATABASE_URL="$address" billing-daemon migrate up
    printf '[http]\nlisten = "unix:/run/billing-daemon/http.sock"\n' >>/etc/billing-daemon/jobs.toml.new
    cat /etc/billing-daemon/jobs.toml >>/etc/billing-daemon/jobs.toml.new
    mv /etc/billing-daemon/jobs.toml.new /etc/billing-daemon/jobs.toml
    # Shorter timeouts than those of the unit, so that this takes seconds.
    mkdir -p /run/systemd/system/billing-daemon.service.d
    printf '[Service]\nWatchdogSec=4\nRestartSec=1\nStandardOutput=append:/mnt/log\nStandardError=append:/mnt/log\n' \
        >/run/systemd/system/billing-daemon.service.d/timeouts.conf
    systemctl daemon-reload

    timeout 60 systemctl start billing-daemon
    for _ in $(seq 300); do
        [[ $(of_unit StatusText) != *charged* ]] || break
        sleep 0.1
    done
    [[ $(of_unit StatusText) == "4 jobs; billing at "*" charged "* ]] || { of_unit StatusText; exit 1; }
    systemctl --no-pager status billing-daemon
    [[ -S /run/billing-daemon/http.sock ]] || exit 1
    expect "the permissions of the credential" "$(stat --format '%a %U' /run/credentials/billing-daemon.service/database-url)" \
        "400 billing-daemon"

    timeout 30 systemctl reload billing-daemon
    sleep 10
    expect "a daemon that works" "$(of_unit SubState), $(of_unit NRestarts) restarts" "running, 0 restarts"
    grep -q 'was read again' /mnt/log || { echo "error: it was not reloaded"; exit 1; }

    echo "==> a daemon that hangs"
    kill -STOP "$(of_unit MainPID)"
    for _ in $(seq 300); do
        [[ $(of_unit NRestarts) = 0 ]] || break
        sleep 0.1
    done
    expect "restarts of a daemon that hung" "$(of_unit NRestarts)" 1
    for _ in $(seq 300); do
        [[ $(of_unit SubState) != running ]] || break
        sleep 0.1
    done
    expect "a daemon that hung" "$(of_unit SubState)" running

    timeout 60 systemctl stop billing-daemon
    expect "a daemon that was stopped" "$(of_unit ActiveState) $(of_unit Result)" "inactive success"

    echo "==> a wrong configuration"
    echo nonsense >/etc/billing-daemon/jobs.toml
    systemctl start billing-daemon 2>/dev/null && exit 1
    sleep 3
    expect "a daemon with a wrong configuration" "$(of_unit ActiveState), $(of_unit NRestarts) restarts" "failed, 0 restarts"
    touch /mnt/ok
    exit 0
fi

# Outside: a separate root file system with the package installed.
if [[ ${1:-} = --world ]]; then
    work=$2
    mount --make-rprivate /
    mount -t tmpfs tmpfs "$work/layer"
    mkdir "$work/layer/upper" "$work/layer/work" "$work/layer/root"
    root=$work/layer/root
    mount -t overlay overlay -o "lowerdir=/,upperdir=$work/layer/upper,workdir=$work/layer/work" "$root"
    # None of this host's services is started.
    rm -rf "$root"/lib/systemd/system/*.wants "$root"/etc/systemd/system/*.wants "$root"/lib/systemd/system-generators "$root/etc/fstab"
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs tmpfs "$root/tmp"
    mount --rbind /dev "$root/dev"
    if [[ $(stat -f --format %T /sys/fs/cgroup) = cgroup2fs ]]; then
        mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    else
        mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
        mkdir "$root/sys/fs/cgroup/systemd"
        mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
    fi
    mkdir -p "$root/mnt" "$root/root"
    mount --bind "$work/shared" "$root/mnt"
    cp "$package" "$root/root/package.deb"
    chroot "$root" dpkg --install /root/package.deb
    cat >"$root/etc/systemd/system/try.service" <<'UNIT'
[Unit]
After=basic.target

[Service]
Type=oneshot
ExecStart=/bin/bash -e /mnt/try-unit.sh --inside
ExecStopPost=/bin/systemctl exit
StandardOutput=append:/mnt/output
StandardError=append:/mnt/output
TimeoutStartSec=150
UNIT
    printf '[Unit]\nRequires=basic.target\nWants=try.service\n' >"$root/etc/systemd/system/try.target"
    mkdir -p "$root/old"
    cd "$root"
    pivot_root . old
    umount --lazy /old
    # As on a real host, mounts of systemd propagate to its services.
    mount --make-rshared /
    exec env --ignore-environment container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin $systemd --system --unit=try.target \
        --log-target=console --show-status=0 >/mnt/systemd 2>&1 </dev/null
fi

[[ $EUID -eq 0 ]] || skip "this requires root"
[[ -x $systemd ]] || skip "systemd is missing (on Debian: apt-get install systemd)"
[[ -e $package ]] || skip "$package is missing (scripts/package.sh --build-only)"
for path in /etc/billing-daemon /var/lib/billing-daemon; do
    [[ ! -e $path ]] || skip "$path exists: the unit is only tried on a host without an installation"
done

work=$(mktemp -d)
mkdir "$work/layer" "$work/shared"
cp "$0" "$work/shared/try-unit.sh"
groups=()
clean_up() {
    for made in "${groups[@]}"; do
        find "$made" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    done
    rm -rf "$work"
}
trap clean_up EXIT
# Separate control groups, so that no process of this host is moved.
while IFS=: read -r _ controllers path; do
    case $controllers in
    "")
        made=/sys/fs/cgroup$path/$group
        [[ ! -d /sys/fs/cgroup/unified ]] || made=/sys/fs/cgroup/unified$path/$group
        ;;
    # A cpuset accepts no process before its processors are set.
    cpuset) continue ;;
    *) made=/sys/fs/cgroup/${controllers#name=}$path/$group ;;
    esac
    if [[ -e $(dirname "$made")/cgroup.procs ]]; then
        mkdir -p "$made"
        groups+=("$made")
    fi
done </proc/self/cgroup

status=0
(
    for made in "${groups[@]}"; do echo $BASHPID >"$made/cgroup.procs"; done
    exec timeout --kill-after=5 240 unshare --fork --kill-child --pid --mount --net --ipc --uts --cgroup \
        bash -e "$PWD/scripts/try-unit.sh" --world "$work"
) || status=$?
cat "$work/shared/output" 2>/dev/null || true
if [[ ! -e $work/shared/ok ]]; then
    cat "$work/shared/log" "$work/shared/systemd" 2>/dev/null || true
    die "the unit does not work under systemd ($status)"
fi
echo "==> the unit works under systemd"
