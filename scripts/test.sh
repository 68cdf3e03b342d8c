#!/usr/bin/env bash
# Installs what the tests need if it is missing, without a prompt, and runs every test of the workspace. Arguments go to
# `cargo test`: `scripts/test.sh -p billing-scheduler -- cron`. Takes 15 to 25 minutes on two cores, half of it for the first build.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/lib.sh

# The folders in which the test harness searches a server.
has_postgres() {
    local folder folders
    IFS=: read -ra folders <<<"$PATH"
    for folder in "${folders[@]}" /usr/lib/postgresql/*/bin; do
        if [[ -x $folder/initdb && -x $folder/pg_ctl && -x $folder/postgres ]]; then return 0; fi
    done
    return 1
}

# install NAME-ON-DEBIAN NAME-ON-FEDORA NAME-ON-ALPINE NAME-ON-HOMEBREW
install() {
    say "installing $1"
    if command -v apt-get >/dev/null; then
        apt_install "$1"
    elif command -v dnf >/dev/null; then
        as_root dnf -q -y install "$2"
    elif command -v apk >/dev/null; then
        as_root apk add --quiet "$3"
    elif command -v brew >/dev/null; then
        brew install --quiet "$4"
    else
        die "cannot install $1: none of apt-get, dnf, apk and brew is available" "install $1 and run this script again"
    fi
}

command -v cargo >/dev/null || die "cargo is missing" "install Rust from https://rustup.rs"
# SQLite is compiled from C.
command -v cc >/dev/null || install build-essential gcc build-base gcc
has_postgres || install postgresql postgresql-server postgresql postgresql
has_postgres || die "PostgreSQL is installed, but initdb, pg_ctl and postgres are not in one folder of PATH" "add their folder to PATH"

# Debian installs it into a folder that only root has in PATH.
export PATH=$PATH:/usr/sbin
command -v pgbouncer >/dev/null || install pgbouncer pgbouncer pgbouncer pgbouncer
# One test checks the alerts with it. Its package is 20 MB, so it is not installed here: without it the test prints SKIPPED.
command -v promtool >/dev/null || say "promtool is missing (on Debian: apt-get install prometheus): the alerts are not checked"

# The library that changes the clock of a server, in the folders in which the test harness searches it.
has_faketime() { compgen -G '/usr/lib*/faketime/libfaketime.so.1' || compgen -G '/usr/lib/*/faketime/libfaketime.so.1' || compgen -G '/usr/local/lib/faketime/libfaketime.so.1'; } >/dev/null
has_faketime || install faketime libfaketime libfaketime libfaketime

# One test builds the container image of Debian packages. Where these are missing it prints SKIPPED.
for tool in podman crun mmdebstrap; do
    command -v $tool >/dev/null || ! command -v apt-get >/dev/null || (install $tool "" "" "") || say "cannot install $tool"
done

# The databases of the tests are in memory if it has room for them: to make one takes a third of the time there.
room=$(df --output=avail -B G /dev/shm 2>/dev/null | tail -n 1 | tr -dc 0-9 || true)
if [[ -z ${BILLING_TEST_SERVERS:-} && -z ${TMPDIR:-} && ${room:-0} -ge 4 ]]; then export BILLING_TEST_SERVERS=/dev/shm; fi

# Many tests wait for a server or for another process, so one more of them runs than there are processors.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(($(getconf _NPROCESSORS_ONLN) + 1))}

log=$(mktemp)
trap 'rm -f "$log" "$log.alone"' EXIT
# What is before `--` goes to cargo and selects packages; what follows goes to the test programs.
selection=(--locked)
[[ " $* " == *" -p "* || " $* " == *" --package "* ]] || selection+=(--workspace)
for argument in "$@"; do
    [[ $argument != -- ]] || break
    selection+=("$argument")
    shift
done
say "building the tests (5 to 15 minutes if nothing is built yet)"
cargo test --quiet --no-run "${selection[@]}"
say "built after $(duration $SECONDS); running: cargo test ${selection[*]} $*"
status=0
cargo test --no-fail-fast "${selection[@]}" "$@" 2>&1 | tee "$log" || status=$?
if ((status != 0)); then
    # Thousands of lines may follow what a failed test printed.
    say "what the failed tests printed"
    awk '/^---- .* stdout ----$/ { shown = 1 } /^(failures:|test result:)/ { shown = 0 } shown' "$log"
    mapfile -t failed < <(awk '/^test .* \.\.\. FAILED$/ { print $2 }' "$log")
    mapfile -t timed_out < <(awk '/^---- .* stdout ----$/ { name = $2 } /^(failures:|test result:)/ { name = "" }
        name != "" && /^waited (for|[0-9])/ { print name; name = "" }' "$log")
    # On a busy host a time limit can expire for no reason of the program's. Such a test gets a second run, alone; every other failure
    # counts at once: a wrong charge is no matter of load.
    if ((${#failed[@]} > 0 && ${#failed[@]} <= 3 && ${#failed[@]} == ${#timed_out[@]})); then
        say "only time limits expired; running alone: ${failed[*]}"
        status=0
        cargo test --no-fail-fast "${selection[@]}" -- --test-threads 1 --exact "${failed[@]}" >"$log.alone" 2>&1 || status=$?
        cat "$log.alone"
        if ((status == 0)); then
            say "FLAKY, failed with other tests and passed alone: ${failed[*]}"
            sed -i -E "/^test result:/s/([0-9]+) passed; [0-9]+ failed/\1 passed; 0 failed/" "$log"
            grep '^test result: .* [1-9][0-9]* passed' "$log.alone" >>"$log"
        fi
    fi
fi
say "the slowest test programs"
awk '/^ *(Running .*\(.*\)|Doc-tests .*)$/ { name = $0; sub(/^ *Running /, "", name); sub(/ \(.*/, "", name); sub(/^ */, "", name) }
     /^test result:/ { seconds = $0; sub(/.*finished in /, "", seconds); printf "%8ss  %s\n", seconds + 0, name }' "$log" |
    sort -rn | head -n 5
awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
     END { printf "%d passed, %d failed, %d ignored", passed, failed, ignored }' "$log"
printf ' in %s\n' "$(duration $SECONDS)"
exit "$status"
