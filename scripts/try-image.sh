#!/usr/bin/env bash
# Builds the container image from packaging/container/Containerfile with a program that is already built, and tries it: with a read-only
# root and without root's rights it bills a generated fleet on SQLite, is healthy until it hangs, and stops on SIGTERM.
#
#   scripts/try-image.sh target/release/billing-daemon
#
# No registry is needed: the base images are made of Debian packages, and the build image has a `cargo` that copies the program. Everything
# is in a temporary folder; the images and containers of this host are not touched.
set -euo pipefail
program=$(realpath "${1:?usage: scripts/try-image.sh PROGRAM}")
cd "$(dirname "$0")/.."
. scripts/lib.sh

skip() { printf 'SKIPPED: %s; the container image is not built\n' "$*"; exit 0; }
for tool in podman crun mmdebstrap strip; do
    command -v $tool >/dev/null || skip "$tool is missing (on Debian: apt-get install podman crun mmdebstrap binutils)"
done
# crun rejects the mixed hierarchy of control groups that some hosts have. In a separate mount namespace only one of them remains.
if [[ $EUID -eq 0 && -z ${IN_NAMESPACE:-} && -d /sys/fs/cgroup/unified ]]; then
    unshare --mount true 2>/dev/null || skip "this host has both versions of control groups and permits no mount namespace"
    exec env IN_NAMESPACE=1 unshare --mount bash -c 'umount /sys/fs/cgroup/unified && exec "$@"' - "$PWD/scripts/try-image.sh" "$program"
fi

work=$(mktemp -d)
podman() {
    command podman --root "$work/storage" --runroot "$work/run" --storage-driver vfs --cgroup-manager cgroupfs --events-backend file "$@"
}
clean_up() {
    podman rm --force --all --time 0 >/dev/null 2>&1 || true
    # Without root, files of the images belong to other users of the user namespace.
    rm -rf "$work" 2>/dev/null || command podman unshare rm -rf "$work"
}
trap clean_up EXIT

say "making the base images"
# The release of this host, since the program needs the glibc with which it was built.
release=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
# base NAME PACKAGES: the packages are unpacked and not configured.
base() {
    mmdebstrap --quiet --variant=extract --include="$2" "$release" "$work/$1.tar" >"$work/log" 2>&1 ||
        skip "mmdebstrap cannot make a base image of ${release:-an unknown release}: $(tail -n 1 "$work/log")"
}
base runtime libc6,libgcc-s1
base build libc6,dash,coreutils
mkdir -p "$work/more/usr/bin"
strip -o "$work/more/usr/bin/billing-daemon" "$program"
printf '#!/bin/sh\nmkdir -p target/release && cp /usr/bin/billing-daemon target/release/\n' >"$work/more/usr/bin/cargo"
chmod 755 "$work/more/usr/bin/"*
tar --append --file "$work/build.tar" --owner 0 --group 0 -C "$work/more" usr/bin/billing-daemon usr/bin/cargo
for name in runtime build; do
    podman import --quiet "$work/$name.tar" "localhost/$name" >"$work/log" 2>&1 || skip "podman cannot import an image: $(tail -n 1 "$work/log")"
    rm "$work/$name.tar"
done

say "building the image"
podman build --quiet --layers=false --isolation chroot --network host --pull=never --format docker \
    --build-arg BUILD_IMAGE=localhost/build --build-arg RUNTIME_IMAGE=localhost/runtime \
    --file packaging/container/Containerfile --tag billing-daemon . >/dev/null
size() { podman image inspect --format '{{.Size}}' "$1"; }
image=$(size billing-daemon)
printf 'SIZE: the image has %d MB, of which the program has %d MB and the base image %d MB\n' $((image / 1000000)) \
    $(($(stat --format %s "$work/more/usr/bin/billing-daemon") / 1000000)) $(($(size localhost/runtime) / 1000000))

expect() { [[ $2 = "$3" ]] || die "$1 is \`$2\`, and should be \`$3\`"; }
config() { podman image inspect --format "{{json .Config.$1}}" billing-daemon; }
expect "the user" "$(config User)" '"65532:65532"'
expect "the stop signal" "$(config StopSignal)" '"SIGTERM"'
expect "the entry point" "$(config Entrypoint)" '["/usr/local/bin/billing-daemon"]'
expect "the volume" "$(config Volumes)" '{"/var/lib/billing-daemon":{}}'
expect "the health check" "$(podman image inspect --format '{{json .HealthCheck.Test}}' billing-daemon)" \
    '["CMD","/usr/local/bin/billing-daemon","healthcheck"]'
for label in title description licenses version revision base.name; do
    [[ $(config Labels) = *"\"org.opencontainers.image.$label\":\""* ]] || die "the label org.opencontainers.image.$label is missing"
done

# The default limits of podman are higher than those of some hosts, which then start no container.
run() {
    podman run --read-only --read-only-tmpfs=false --cap-drop all --security-opt no-new-privileges --network host --cgroups disabled \
        --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --log-driver k8s-file \
        --volume state:/var/lib/billing-daemon --env DATABASE_URL=sqlite:///var/lib/billing-daemon/billing.db "$@"
}
run --rm billing-daemon version >/dev/null 2>"$work/log" || {
    # A host that cannot start any container, rather than an image that does not start.
    grep -q 'crun\|OCI' "$work/log" && skip "this host cannot start a container: $(grep 'crun\|OCI' "$work/log" | tail -n 1)"
    die "the image does not start: $(cat "$work/log")"
}

# until_true SECONDS WHAT COMMAND...
until_true() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >"$work/log" 2>&1; do
        ((SECONDS < deadline)) || die "not $what in time: $(tail -n 5 "$work/log")" "$(podman logs daemon 2>&1 | tail -n 20)"
        sleep 0.2
    done
}
within() { podman exec daemon billing-daemon "$@"; }
# A few of the generated instances are held, which `status` reports as a problem, with the exit code 1.
has_billed() {
    { within status --json 2>/dev/null || true; } | python3 -c '
import json, sys
run = json.load(sys.stdin)["last_run"]
print("the last run charged", run["details"]["charged"], "of 1,000 instances")
sys.exit(run["status"] != "done" or run["details"]["charged"] < 700)'
}
run --rm --tmpfs /tmp billing-daemon demo --instances 100 --json >"$work/log" 2>&1 || die "the demo fails: $(cat "$work/log")"

say "billing a generated fleet"
fleet=$(run --rm billing-daemon demo --generate-only --instances 1000 --database-url 'sqlite:///var/lib/billing-daemon/billing.db' 2>"$work/log") ||
    die "the fleet is not generated: $(cat "$work/log")"
expect "the output of the demo" "$fleet" "Generated a fleet of 1,000 instances"
run --detach --name daemon billing-daemon >/dev/null 2>&1
until_true 60 healthy podman healthcheck run daemon
until_true 60 "billing" has_billed
cat "$work/log"
within audit

say "hanging"
process=$(podman inspect --format '{{.State.Pid}}' daemon)
[[ $(awk '/^Uid:/ { print $2 }' "/proc/$process/status") -ne 0 ]] || die "the daemon runs as root"
hangs() { ! podman exec daemon billing-daemon healthcheck --max-age 2s; }
command podman unshare true 2>/dev/null && [[ $EUID -ne 0 ]] && signal=(command podman unshare kill) || signal=(kill)
"${signal[@]}" -STOP "$process"
until_true 30 unhealthy hangs
"${signal[@]}" -CONT "$process"
until_true 30 "healthy again" within healthcheck --max-age 2s

say "stopping"
# The grace is longer than `drain-timeout` (60 s) + 50 s.
podman stop --time 120 daemon >/dev/null 2>&1
expect "the exit code after SIGTERM" "$(podman inspect --format '{{.State.ExitCode}}' daemon)" 0
printed=$(podman logs daemon 2>&1)
[[ $printed = *'SIGTERM: nothing new starts'* ]] || die "the daemon was not stopped by SIGTERM: $(tail -n 5 <<<"$printed")"
printf 'the image was built, was healthy, billed a fleet and stopped with exit code 0, in %s\n' "$(duration $SECONDS)"
