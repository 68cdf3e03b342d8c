# Functions that the scripts share. To be sourced from the root of the repository.

say() { printf '==> %s\n' "$*"; }
die() { printf 'error: %s\n' "$1" >&2; shift; [[ $# -eq 0 ]] || printf 'help: %s\n' "$@" >&2; exit 1; }

# duration SECONDS: `4s`, `3m 05s`, `1h 02m`.
duration() {
    if (($1 < 60)); then printf '%ds' "$1"
    elif (($1 < 3600)); then printf '%dm %02ds' $(($1 / 60)) $(($1 % 60))
    else printf '%dh %02dm' $(($1 / 3600)) $(($1 / 60 % 60)); fi
}

steps=()
# step NAME COMMAND...: runs the command and records how long it took; returns its exit code.
step() {
    local name=$1 begin=$SECONDS code=0
    shift
    printf '\n'
    say "$name"
    "$@" || code=$?
    local result=ok
    [[ $code -eq 0 ]] || result="FAILED ($code)"
    steps+=("$(printf '%9s  %-12s %s' "$(duration $((SECONDS - begin)))" "$result" "$name")")
    return "$code"
}

# Prints the duration of each step.
print_steps() {
    ((${#steps[@]})) || return 0
    printf '\n'
    say "duration of each step"
    printf '%s\n' "${steps[@]}"
    printf '%9s  total\n' "$(duration $SECONDS)"
}

as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    elif sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        die "this needs root, and sudo is missing or needs a password" "run: sudo $*"
    fi
}

# apt_install PACKAGE...
apt_install() {
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120)
    # Fetching the package lists is slow, so the present ones are tried first.
    as_root "${apt[@]}" install --no-install-recommends "$@" || {
        as_root "${apt[@]}" update
        as_root "${apt[@]}" install --no-install-recommends "$@"
    }
}
