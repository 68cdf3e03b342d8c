#!/usr/bin/env bash
# Installs what the tests need where it is missing, without asking, and runs every test of the workspace. Arguments go
# to `cargo test`: `scripts/test.sh -p e2e -- harness`.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '==> %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Where the harness looks for a server (tests/src/postgres.rs).
has_postgres() {
    local folder folders
    IFS=: read -ra folders <<<"$PATH"
    for folder in "${folders[@]}" /usr/lib/postgresql/*/bin; do
        if [[ -x $folder/initdb && -x $folder/pg_ctl && -x $folder/postgres ]]; then return 0; fi
    done
    return 1
}

as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    elif sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        die "this needs root, and sudo is missing or would ask for a password; run it yourself: sudo $*"
    fi
}

# install NAME-ON-DEBIAN NAME-ON-FEDORA NAME-ON-ALPINE NAME-ON-HOMEBREW
install() {
    say "installing $1"
    if command -v apt-get >/dev/null; then
        local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120)
        # The lists may be fresh enough; fetching them is the slow part.
        as_root "${apt[@]}" install --no-install-recommends "$1" || {
            as_root "${apt[@]}" update
            as_root "${apt[@]}" install --no-install-recommends "$1"
        }
    elif command -v dnf >/dev/null; then
        as_root dnf -q -y install "$2"
    elif command -v apk >/dev/null; then
        as_root apk add --quiet "$3"
    elif command -v brew >/dev/null; then
        brew install --quiet "$4"
    else
        die "no package manager known here (apt-get, dnf, apk, brew): install $1 and run this again"
    fi
}

command -v cargo >/dev/null || die "cargo is missing: install Rust from https://rustup.rs"
# SQLite is compiled from C.
command -v cc >/dev/null || install build-essential gcc build-base gcc
has_postgres || install postgresql postgresql-server postgresql postgresql
has_postgres || die "PostgreSQL is installed, but initdb, pg_ctl and postgres are not on PATH together: add their folder"

# Debian keeps it where only root's PATH leads.
export PATH=$PATH:/usr/sbin
command -v pgbouncer >/dev/null || install pgbouncer pgbouncer pgbouncer pgbouncer
# It tries the alerts. 20 MB for that are not for everybody: without it, that one test is skipped and says so.
command -v promtool >/dev/null || say "promtool is missing (on Debian: apt-get install prometheus): nobody tries the alerts"

# The library that moves a server's clock, where the harness looks for it (tests/src/postgres.rs).
has_faketime() { compgen -G '/usr/lib*/faketime/libfaketime.so.1' || compgen -G '/usr/lib/*/faketime/libfaketime.so.1' || compgen -G '/usr/local/lib/faketime/libfaketime.so.1'; } >/dev/null
has_faketime || install faketime libfaketime libfaketime libfaketime

say "cargo test --workspace --locked $*"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
cargo test --workspace --locked --no-fail-fast "$@" 2>&1 | tee "$log" || status=$?
awk '/^test result:/ { passed += $4; failed += $6 } END { printf "%d passed, %d failed\n", passed, failed }' "$log"
exit "$status"
