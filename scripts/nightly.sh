#!/usr/bin/env bash
# Runs what takes too long for each change: each night, and before a release. Every step runs, also after a failure; its output goes to
# target/nightly/STEP.log.
#
#   scripts/nightly.sh                 all steps, about six hours on two cores
#   scripts/nightly.sh --list          the names of the steps
#   scripts/nightly.sh faults model    these steps
#
# NIGHTLY_SECONDS is the length of one fault campaign (600; 300 on a cluster), NIGHTLY_SEEDS the number of simulated seeds (1000000),
# NIGHTLY_CASES the number of cases of each property (50000).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

logs=target/nightly
skip() { printf 'SKIPPED: %s\n' "$*"; }
tools() { cargo run --quiet --release --locked --package billing-tools -- "$@"; }

# Each publishable crate is built from its package, as a user of the registry builds it.
packages() { ./scripts/check-packages.py --verify; }

debian() { ./scripts/package.sh --build-only; }

# The image with the optimized program, whose size this prints; then the build of the Containerfile as it is, with its own base images,
# where their registries can be reached.
container() {
    local builder
    cargo build --quiet --release --locked --package billing-daemon --features otel || return 1
    ./scripts/try-image.sh target/release/billing-daemon || return 1
    builder=$(command -v podman || command -v docker) || { skip "podman and docker are missing; the Containerfile is not built as it is"; return; }
    "$builder" pull --quiet gcr.io/distroless/cc-debian12 >/dev/null || { skip "no registry can be reached; the Containerfile is not built as it is"; return; }
    if [[ $builder = */podman ]]; then builder="$builder build --format docker"; else builder="$builder build"; fi
    $builder --file packaging/container/Containerfile --tag billing-daemon:nightly .
}

# The advisory database is fetched, so this needs the network.
advisories() {
    export PATH=$PWD/target/tools/bin:$PATH
    if ! command -v cargo-deny >/dev/null; then skip "cargo-deny is missing; .ci/run installs it"; return; fi
    cargo deny --locked fetch db || { skip "the advisory database cannot be fetched"; return; }
    cargo deny --locked check --disable-fetch advisories
}

# Each package with the oldest compiler that it declares.
oldest_compiler() {
    local version packages code=0
    while read -r version packages; do
        if ! rustup toolchain install "$version" --profile minimal; then skip "rustup cannot install Rust $version"; continue; fi
        # shellcheck disable=SC2086
        RUSTUP_TOOLCHAIN=$version cargo check --locked --target-dir target/nightly/oldest-compiler $packages || code=1
    done < <(cargo metadata --format-version 1 --no-deps | python3 -c '
import collections, json, sys
packages = collections.defaultdict(list)
for package in json.load(sys.stdin)["packages"]:
    packages[package["rust_version"]].append(package["name"])
for version, names in packages.items():
    print(version, *(f"--package {name}" for name in names))')
    return $code
}

# .github/workflows/ci.yml checks each change on macOS and Windows themselves.
other_platforms() { ./scripts/check-targets.sh; }

ignored_tests() { cargo test --release --workspace --locked -- --ignored; }

simulation() { SEEDS=${NIGHTLY_SEEDS:-1000000} cargo test --release --locked --package billing-scheduler --test simulation; }

properties() {
    PROPTEST_CASES=${NIGHTLY_CASES:-50000} cargo test --release --locked --no-fail-fast \
        --package billing-scheduler --package billing-jobs --package billing-daemon
}

# The variants that hold, with one more daemon or hour than the tests check.
model() {
    local result code=0
    for variant in "daemons --hours 6" "panel-two-instances --daemons 3" "panel-two-instances --hours 3" \
        "panel-three-daemons --hours 4" "fail-over --daemons 3"; do
        # shellcheck disable=SC2086
        result=$(cargo run --quiet --release --locked --package protocol-model -- $variant --threads "$(getconf _NPROCESSORS_ONLN)" | tail -n 1)
        printf '%s\n' "$result"
        [[ $result == *"| holds |"* ]] || { printf 'error: variant %s does not hold\n' "$variant"; code=1; }
    done
    return $code
}

faults() {
    local code=0
    for database in postgres sqlite; do
        for seed in 1 2 3; do
            tools faults --database "$database" --seconds "${NIGHTLY_SECONDS:-600}" --seed "$seed" --json || code=1
        done
    done
    return $code
}

prepaid() {
    local code=0
    for database in postgres sqlite; do
        tools prepaid --database "$database" --seconds 120 --seed 1 --json || code=1
    done
    return $code
}

has_cluster() {
    local program
    for program in etcd patroni patronictl haproxy; do command -v "$program" || return 1; done
    compgen -G '/usr/lib/postgresql/*/bin/pg_rewind'
} >/dev/null

# Installs what a cluster consists of. Meanwhile a policy rejects the start of each service, so the packages start no server.
install_cluster() {
    local policy=/usr/sbin/policy-rc.d own='' code=0
    PATH=$PATH:/usr/sbin
    if has_cluster; then return 0; fi
    command -v apt-get >/dev/null || return 1
    if [[ ! -e $policy ]]; then
        own=yes
        printf '#!/bin/sh\nexit 101\n' | as_root install -m 755 /dev/stdin "$policy"
    fi
    # A policy of the host may permit starts.
    "$policy" etcd start || code=$?
    if [[ $code -eq 101 ]]; then apt_install postgresql etcd-server patroni haproxy || true; fi
    [[ -z $own ]] || as_root rm -f "$policy"
    has_cluster
}

cluster() {
    install_cluster || { skip "etcd, Patroni or HAProxy is missing, and cannot be installed"; return; }
    tools cluster --seconds "${NIGHTLY_SECONDS:-300}" --seed 1 --json &&
        tools cluster --asynchronous --faults lose-commits,kill-leader --seconds 70 --seed 1 --json
}

# Figures for docs/performance.md; scripts/bench-gate.sh is what compares two commits.
benchmarks() {
    local name code=0
    for database in postgres sqlite; do
        tools bench-billing --database "$database" --instances 100000 --json || code=1
    done
    for name in $(tools --help | grep -o '^ *bench-[a-z-]*' | sort -u); do
        [[ $name == bench-billing ]] || tools "$name" || code=1
    done
    cargo bench --locked --package billing-scheduler --bench dispatch -- --jobs 1000,10000 --bursts 4 || code=1
    cargo bench --locked --package billing-scheduler --bench due || code=1
    cargo bench --locked --package billing-jobs || code=1
    return $code
}

# Every variant; .ci/run has half of them.
browser() { ./scripts/browser.sh --json; }

book() {
    local mdbook=0.5.4
    export PATH=$PWD/target/tools/bin:$PATH
    # The version of which the output was inspected.
    [[ $(mdbook --version 2>/dev/null) == "mdbook v$mdbook" ]] ||
        cargo install --quiet --locked --force --root target/tools --target-dir target/tools \
            --version "$mdbook" --no-default-features --features search mdbook || return 1
    rm -rf target/book
    mdbook build docs && ./scripts/check-book.py target/book
}

all=(packages oldest_compiler other_platforms debian container advisories book browser ignored_tests model simulation properties faults prepaid cluster benchmarks)
case ${1:-} in
--list) printf '%s\n' "${all[@]}"; exit 0 ;;
-*) die "unknown option $1" "scripts/nightly.sh [--list | STEP...]" ;;
esac
for name in "$@"; do
    [[ " ${all[*]} " == *" $name "* ]] || die "unknown step $name" "steps: ${all[*]}"
done
[[ $# -gt 0 ]] || set -- "${all[@]}"

mkdir -p "$logs"
trap print_steps EXIT
# A subshell, so that a step changes no variable of another.
logged() {
    local code=0
    ("$1") >"$logs/$1.log" 2>&1 || code=$?
    grep '^SKIPPED' "$logs/$1.log" || true
    [[ $code -eq 0 ]] || { tail -n 20 "$logs/$1.log"; printf 'error: %s failed; see %s\n' "$1" "$logs/$1.log"; }
    return $code
}
failed=0
for name in "$@"; do
    step "$name" logged "$name" || failed=1
done
exit $failed
