#!/usr/bin/env bash
# Builds the Debian package, checks it with lintian, and tries it on this host: installs and configures it, bills three instances in an
# SQLite database, removes and purges it.
#
#   scripts/package.sh [--profile dev] [--build-only] [--yes]
#
# Installing takes root, and a host where nothing of billing-daemon is installed yet; without them that part is skipped. It changes
# this host, so on a terminal the script requires a confirmation (`--yes` confirms), and elsewhere it prints a warning.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '==> %s\n' "$*"; }
skip() { printf 'SKIPPED: %s\n' "$*"; exit 0; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

profile=release
build_only=no
confirmed=no
while [[ $# -gt 0 ]]; do
    case $1 in
    --profile) profile=${2:?a profile, as in --profile dev}; shift 2 ;;
    --build-only) build_only=yes; shift ;;
    --yes) confirmed=yes; shift ;;
    *) die "usage: scripts/package.sh [--profile dev] [--build-only] [--yes]" ;;
    esac
done
# Cargo calls the folder of this one profile differently.
folder=$profile
[[ $profile != dev ]] || folder=debug

command -v dpkg-deb >/dev/null || skip "dpkg-deb is missing, so this is not Debian; the package is not built"
export PATH=$PWD/target/tools/bin:$PATH
if ! command -v cargo-deb >/dev/null; then
    say "installing cargo-deb (10 minutes at most)"
    # Used once, so a fast build matters more than a fast program.
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        timeout 600 cargo install --quiet --locked --root target/tools --target-dir target/tools cargo-deb ||
        skip "cargo-deb could not be installed; the package is not built"
fi

say "building"
cargo build --quiet --locked --package billing-daemon --features otel --profile "$profile"
generated=$PWD/target/package
rm -rf "$generated"
mkdir -p "$generated/man" "$generated/completions"
program=$generated/billing-daemon
strip -o "$program" "target/$folder/billing-daemon"
"$program" man --dir "$generated/man"
"$program" completions bash >"$generated/completions/billing-daemon"
"$program" completions zsh >"$generated/completions/_billing-daemon"
"$program" completions fish >"$generated/completions/billing-daemon.fish"
package=$generated/billing-daemon.deb
# The files of the package exist already, so cargo-deb neither builds nor strips.
cargo deb --quiet --package billing-daemon --no-build --no-strip --output "$package"
say "$(dpkg-deb --show --showformat '${Package} ${Version} ${Architecture}, ${Installed-Size} KB' "$package")"

if command -v lintian >/dev/null; then
    say "lintian"
    # lintian rejects root without this option.
    lintian --allow-root --fail-on error "$package"
else
    echo "SKIPPED: lintian is missing (on Debian: apt-get install lintian); the package is not checked"
fi
[[ $build_only = no ]] || exit 0

[[ $EUID -eq 0 ]] || skip "installing takes root; the package is not tried"
for tool in systemd-sysusers systemd-tmpfiles; do
    command -v $tool >/dev/null || skip "$tool is missing (on Debian: apt-get install systemd); the package is not tried"
done
command -v sqlite3 >/dev/null || skip "sqlite3 is missing (on Debian: apt-get install sqlite3); the package is not tried"
for path in /etc/billing-daemon /var/lib/billing-daemon /usr/bin/billing-daemon; do
    [[ ! -e $path ]] || skip "$path exists: the package is only tried on a host without an installation"
done

cat >&2 <<EOF
warning: this installs the package on this host ($(uname -n)) with dpkg, starts a daemon for about a minute, then removes and purges
         the package. The user \`billing-daemon\` stays. To build the package only: scripts/package.sh --build-only
EOF
if [[ $confirmed = no && -t 0 ]]; then
    read -r -p "Install it on this host? [y/N] " answer
    [[ $answer = [yY]* ]] || skip "not confirmed; the package is built, and it was not installed"
fi

work=$(mktemp -d)
daemon=
clean_up() {
    [[ -z $daemon ]] || kill -9 "$daemon" 2>/dev/null || true
    dpkg --purge billing-daemon >/dev/null 2>&1 || true
    rm -rf "$work" /var/lib/billing-daemon
}
trap clean_up EXIT

say "installing"
# A minimal Debian image does not install manuals without this option.
install_package() { dpkg --path-include='/usr/share/man/*' --install "$package"; }
install_package
[[ $(stat --format '%a %U' /etc/billing-daemon/database-url) = "600 root" ]] || die "others may read the database's address"
[[ $(stat --format '%a %U' /var/lib/billing-daemon) = "750 billing-daemon" ]] || die "the folder for state is not the daemon's"
[[ -z $(find /etc/systemd/system -name '*billing*' 2>/dev/null) ]] || die "the service is enabled before it is configured"
grep -q billing-daemon /usr/share/bash-completion/completions/billing-daemon || die "the completions are missing"
zcat /usr/share/man/man1/billing-daemon.1.gz | grep -q 'billing' || die "the manual page is missing"

say "using it"
address=sqlite:///var/lib/billing-daemon/billing.db?mode=rwc
# As in the unit: another user, a copy of the address that only this user can read, a folder for state.
as_user=(
    setpriv --reuid billing-daemon --regid billing-daemon --clear-groups --no-new-privs
    env --ignore-environment --chdir=/var/lib/billing-daemon CREDENTIALS_DIRECTORY="$work"
    STATE_DIRECTORY=/var/lib/billing-daemon
)
as_daemon=("${as_user[@]}" /usr/bin/billing-daemon)
chmod 755 "$work"
printf '%s\n' "$address" >"$work/database-url"
chown billing-daemon "$work/database-url"
chmod 400 "$work/database-url"
"${as_daemon[@]}" migrate up
"${as_daemon[@]}" check
# Three instances at a cent per hour, each with two due hours.
"${as_user[@]}" "$(command -v sqlite3)" /var/lib/billing-daemon/billing.db "
    INSERT INTO users (id, email, name) VALUES ('ada', 'ada@example.org', 'Ada');
    INSERT INTO organizations (id, name, slug, owner_id) VALUES ('org', 'Org', 'org', 'ada');
    INSERT INTO wallets (organization_id, balance) VALUES ('org', 100000);
    INSERT INTO vps_plans (id, name, provider_plan_id, base_price) VALUES ('plan', 'Plan', 'plan', 73000);
    INSERT INTO vps_instances (organization_id, plan_id, provider_instance_id, label, status, backup_frequency, created_at)
    SELECT 'org', 'plan', value, 'machine ' || value, 'running', 'none',
           strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now', '-150 minutes')
      FROM json_each('[1, 2, 3]')"
: >"$work/status"
"${as_daemon[@]}" run >"$work/log" 2>&1 &
daemon=$!
for _ in $(seq 600); do
    grep -q 'job `billing` done' "$work/log" && "${as_daemon[@]}" status >"$work/status" 2>&1 && break
    sleep 0.1
done
cat "$work/log" "$work/status"
"${as_daemon[@]}" status >/dev/null || die "billing is not healthy after a minute"
kill -TERM "$daemon"
wait "$daemon" || die "the daemon did not stop cleanly"
daemon=
"${as_daemon[@]}" audit
grep -q 'charged 0.06 USD for 6 hours of 3 instances' "$work/status" || die "the daemon did not charge what was due"

say "installing it again, as an upgrade does"
echo "# a change by the operator" >>/etc/billing-daemon/jobs.toml
install_package
tail -n 1 /etc/billing-daemon/jobs.toml | grep -q 'by the operator' || die "an upgrade loses the operator's jobs.toml"

say "removing and purging it"
dpkg --remove billing-daemon
[[ -e /etc/billing-daemon/jobs.toml && -e /var/lib/billing-daemon/billing.db ]] || die "removing deletes configuration or data"
dpkg --purge billing-daemon
[[ -e /var/lib/billing-daemon/billing.db ]] || die "purging removes the database, which has the money of customers"
rm /var/lib/billing-daemon/billing.db*
rmdir /var/lib/billing-daemon || die "purging leaves files: $(ls /var/lib/billing-daemon)"
left=$(find /etc /usr /lib /var/lib /run -xdev -iname '*billing-daemon*' -not -path '*/cargo/*' 2>/dev/null || true)
[[ -z $left ]] || die "purging leaves: $left"
say "nothing is left except the user billing-daemon, which Debian packages do not remove"
