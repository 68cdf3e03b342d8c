#!/usr/bin/env bash
# Checks the console in a browser: 12 flows in light and dark, at 375 and 1280 pixels, with and without JavaScript. Each page is checked by
# axe-core for accessibility, and the browser must report no error, such as a violation of the policy for content.
#
#   scripts/browser.sh [--json] [--sample] [--screenshots FOLDER] [--widths 375,1280,1920] [--only REGEX] [--picture docs/console.png]
#
# --sample takes half of the variants, in which each two properties meet. The script uses the system's Chromium, Playwright from PyPI and
# axe-core from npm; the last two are installed into target/browser. Where one of them cannot be installed, it prints SKIPPED and succeeds.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

playwright=1.65.2
axe=4.14.1
tools=$PWD/target/browser

skip() { say "SKIPPED: $1; the console was not checked in a browser" >&2; exit 0; }

chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
if [[ -z $chromium ]]; then
    apt_install chromium >/dev/null 2>&1 || skip "Chromium is missing and cannot be installed"
    chromium=$(command -v chromium) || skip "Chromium is missing"
fi
if [[ ! -e $tools/bin/playwright ]]; then
    { python3 -m venv "$tools" &&
        "$tools/bin/pip" install --quiet --disable-pip-version-check "playwright==$playwright"; } >/dev/null 2>&1 ||
        { rm -rf "$tools"; skip "Playwright cannot be installed from PyPI"; }
fi
if [[ ! -e $tools/axe.min.js ]]; then
    (cd "$tools" && npm pack --silent "axe-core@$axe" >/dev/null 2>&1 &&
        tar --extract --gzip --file "axe-core-$axe.tgz" --strip-components 1 package/axe.min.js) ||
        skip "axe-core cannot be fetched from npm"
fi

program=${BILLING_DAEMON:-}
if [[ -z $program ]]; then
    # The daemon that the end-to-end tests build.
    cargo build --quiet --locked --package billing-e2e --bin e2e-daemon
    program=${CARGO_TARGET_DIR:-$PWD/target}/debug/e2e-daemon
fi
exec "$tools/bin/python" scripts/browser.py --program "$program" --chromium "$chromium" --axe "$tools/axe.min.js" \
    --log "$tools/demo.log" "$@"
