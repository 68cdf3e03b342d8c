#!/usr/bin/env bash
# Checks the units of systemd/ with systemd: it must understand them completely, and their security score must be good.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v systemd-analyze >/dev/null; then
    echo "SKIPPED: systemd-analyze is missing (on Debian: apt-get install systemd); the units are not checked"
    exit 0
fi

# Copies with a program that exists, because the daemon may not be installed here. The folder is the search path, so that the units of this
# host are not checked as well.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for unit in systemd/*.service systemd/user/*.service; do
    mkdir -p "$folder/$(dirname "$unit")"
    sed -e 's|^ExecStart=/usr/bin/billing-daemon|ExecStart=/bin/true|' -e '/^Documentation=/d' "$unit" >"$folder/$unit"
done

# Without a login session there is no folder of the session.
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-$folder}
verify() {
    local complaints
    # It prints some mistakes and still succeeds.
    if ! complaints=$(systemd-analyze "$@" 2>&1) || [[ -n $complaints ]]; then
        printf '%s\nsystemd does not understand the units\n' "$complaints" >&2
        exit 1
    fi
}
verify verify "$folder"/systemd/billing-daemon.service "$folder"/systemd/containerstacks-billing.service \
    "$folder/systemd/billing-daemon@panel.service"
verify --user verify "$folder"/systemd/user/*.service

# The program that a reload runs is part of another package, on which ours must depend.
if command -v dpkg-query >/dev/null; then
    depends=$(sed -n 's/^depends = "\(.*\)"$/\1/p' billing-daemon/Cargo.toml)
    for program in $(sed -n 's/^ExecReload=\([^ ]*\).*/\1/p' systemd/*.service systemd/user/*.service | sort -u); do
        package=$(dpkg-query --search "*${program##*/bin}" | sed -n "s|^\([^:]*\): .*/bin/${program##*/}$|\1|p" | head -n 1)
        if [[ -z $package || ", $depends," != *", $package,"* ]]; then
            echo "a reload runs $program of the package \`$package\`, which ours does not depend on: $depends" >&2
            exit 1
        fi
    done
fi

for unit in systemd/*.service; do
    # The threshold is in tenths.
    systemd-analyze security --offline=true --threshold=10 --no-pager "$unit" | tail -n 1
done
