#!/usr/bin/env bash
# Fails if the working tree is more than 5 % slower than the commit BASE.
#
#   scripts/bench-gate.sh BASE                  all workloads, 30 to 60 minutes on two cores after the builds
#   scripts/bench-gate.sh BASE billing-sqlite   these workloads; `--list` prints their names
#
# Both commits are built in release mode. Each workload then runs with both builds in alternation, until the 95 % confidence
# interval of the ratio excludes a loss of 5 % (passed) or proves it (failed, exit code 1). If 64 pairs of rounds prove neither,
# the host is too busy: exit code 75. The pure decisions are compared by their number of instructions, which is exact, with
# callgrind: more than 1 % is a failure.
#
# INSTANCES is the size of the fleet (20000), JOBS the number of dispatched jobs (5000).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

workloads=(billing-sqlite billing-postgres audit-sqlite audit-postgres idle dispatch instructions)
[[ ${1:-} != --list ]] || { printf '%s\n' "${workloads[@]}"; exit 0; }
[[ $# -gt 0 ]] || die "no base commit" "scripts/bench-gate.sh BASE [WORKLOAD...]"
base=$(git rev-parse --verify --quiet "$1^{commit}") || die "unknown commit $1"
shift
for name in "$@"; do
    [[ " ${workloads[*]} " == *" $name "* ]] || die "unknown workload $name" "workloads: ${workloads[*]}"
done
[[ $# -gt 0 ]] || set -- "${workloads[@]}"

tree=$(mktemp -d)
trap 'git worktree remove --force "$tree/base" >/dev/null 2>&1 || true; rm -rf "$tree"; print_steps' EXIT
git worktree add --quiet --detach "$tree/base" "$base"

# build FOLDER NAME: builds billing-tools of the checkout in FOLDER and copies it to the folder of this script's files.
build() {
    (cd "$1" && cargo build --quiet --release --locked --package billing-tools --target-dir "$target/$2")
    cp "$target/$2/release/billing-tools" "$tree/$2-program"
}
target=$PWD/target/bench-gate
step "build $(git rev-parse --short "$base")" build "$tree/base" base
# Reuses what `cargo build --release` has built.
target=$PWD step "build the working tree" build "$PWD" target
this=$tree/target-program
other=$tree/base-program
"$other" bench-billing --help | grep -q -- --worker || die "bench-billing of $base has no --worker" "choose a later commit as base"

compare() { "$this" bench-billing --compare "$other" "$@"; }
# The instructions of N decisions are those of 2N, minus those of N: the start of the program is not counted.
instructions_of() {
    local of=()
    for decisions in 2000 4000; do
        valgrind --tool=callgrind --callgrind-out-file=/dev/null "$1" bench-billing --decisions $decisions 2>"$tree/callgrind" ||
            { cat "$tree/callgrind"; return 1; }
        of+=("$(sed -n 's/.*Collected : \([0-9]*\).*/\1/p' "$tree/callgrind")")
    done
    echo $((of[1] - of[0]))
}
compare_instructions() {
    if ! command -v valgrind >/dev/null; then
        echo "SKIPPED: valgrind is missing (on Debian: apt-get install valgrind); instructions are not compared"
        return
    fi
    local of_this of_other
    of_this=$(instructions_of "$this") && of_other=$(instructions_of "$other") || return 1
    # In thousandths.
    local ratio=$((of_this * 1000 / of_other))
    printf 'instructions of 2000 decisions: %d, base %d, ratio %d.%03d\n' "$of_this" "$of_other" $((ratio / 1000)) $((ratio % 1000))
    ((ratio <= 1010))
}
run_workload() {
    local fleet=(--instances "${INSTANCES:-20000}")
    case $1 in
    billing-*) compare --workload billing --database "${1#billing-}" "${fleet[@]}" ;;
    audit-*) compare --workload audit --database "${1#audit-}" "${fleet[@]}" ;;
    idle) compare --workload idle --database postgres ;;
    dispatch) compare --workload dispatch --database sqlite --instances "${JOBS:-5000}" ;;
    instructions) compare_instructions ;;
    esac
}

failed=0
for name in "$@"; do
    code=0
    step "$name" run_workload "$name" || code=$?
    # A proven loss outweighs a comparison that proves nothing.
    if [[ $code -ne 0 && $failed -ne 1 ]]; then failed=$code; fi
done
exit $failed
