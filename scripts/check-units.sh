#!/usr/bin/env bash
# Holds the units of systemd/ against systemd itself: they are understood whole, and leave the service little to do harm with.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v systemd-analyze >/dev/null; then
    echo "SKIPPED: systemd-analyze is missing (on Debian: apt-get install systemd); nobody checks the units"
    exit 0
fi

# Copies whose program and manual are there: not everybody who checks has installed us. The folder is the search path, so that the
# units of this machine are not checked as well.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for unit in systemd/*.service systemd/user/*.service; do
    mkdir -p "$folder/$(dirname "$unit")"
    sed -e 's|^ExecStart=/usr/bin/billing-daemon|ExecStart=/bin/true|' -e '/^Documentation=/d' "$unit" >"$folder/$unit"
done

# Whoever has no session has no folder of the session either.
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-$folder}
verify() {
    local complaints
    # It tells of some mistakes and succeeds.
    if ! complaints=$(systemd-analyze "$@" 2>&1) || [[ -n $complaints ]]; then
        printf '%s\nsystemd does not understand the units\n' "$complaints" >&2
        exit 1
    fi
}
verify verify "$folder"/systemd/billing-daemon.service "$folder"/systemd/containerstacks-billing.service \
    "$folder/systemd/billing-daemon@panel.service"
verify --user verify "$folder"/systemd/user/*.service

# What a reload runs is another package's: ours must ask for it.
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
