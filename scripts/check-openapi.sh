#!/usr/bin/env bash
# Checks the HTTP interface with independent tools: openapi-spec-validator validates /api/openapi.json, and schemathesis sends
# requests that the document allows, and others, to a daemon on 127.0.0.1 and checks for server errors and undocumented responses.
#
#   scripts/check-openapi.sh
#
# Both come from PyPI, in the versions of openapi-requirements.txt, into target/openapi. Nothing is skipped: without them it fails.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '==> %s\n' "$*"; }
die() { printf 'error: %s\n' "$1" >&2; shift; printf 'help: %s\n' "$@" >&2; exit 1; }

requirements=$PWD/scripts/openapi-requirements.txt
tools=$PWD/target/openapi
if ! cmp -s "$requirements" "$tools/installed.txt"; then
    say "installing openapi-spec-validator and schemathesis"
    rm -rf "$tools"
    { python3 -m venv "$tools" &&
        "$tools/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"; } ||
        die "cannot install the tools that check the HTTP interface" \
            "install Python 3.10 or newer with venv (on Debian: apt-get install python3-venv)" \
            "let this host reach https://pypi.org, or set PIP_INDEX_URL to a mirror"
    cp "$requirements" "$tools/installed.txt"
fi

# The daemon that the end-to-end tests build.
say "building the daemon"
cargo build --quiet --locked --package billing-e2e --bin e2e-daemon
program=${CARGO_TARGET_DIR:-$PWD/target}/debug/e2e-daemon

work=$(mktemp -d)
daemon=
clean_up() {
    [[ -z $daemon ]] || { kill -TERM "$daemon" && wait "$daemon"; } 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
url=http://127.0.0.1:$port
cat >"$work/jobs.toml" <<EOF
[http]
listen = "127.0.0.1:$port"

[[job]]
name = "billing"
kind = "billing"
schedule = { every = "1h" }
run-at-start = true

[[job]]
name = "heartbeat"
kind = "heartbeat"
schedule = { every = "1m" }
scope = "node"
run-at-start = true

[[job]]
name = "audit"
kind = "audit"
schedule = { every = "1d" }
run-at-start = true
EOF
export DATABASE_URL=sqlite://$work/billing.db
cd "$work"
# A fleet with holds, and a history of runs: every field has a value somewhere.
"$program" demo --instances 200 --json --database-url "$DATABASE_URL" >demo.json
"$program" run >log 2>&1 &
daemon=$!
answers() { python3 -c "import urllib.request as r; print(r.urlopen('$url$1', timeout=20).read().decode())"; }
for attempt in $(seq 300); do
    grep -q 'job `audit` done' log && answers /readyz >/dev/null 2>&1 && break
    kill -0 "$daemon" 2>/dev/null && [[ $attempt -lt 300 ]] || { cat log; answers /readyz || true; die "the daemon is not ready"; }
    sleep 0.2
done

say "openapi-spec-validator"
answers /api/openapi.json >openapi.json
"$tools/bin/openapi-spec-validator" openapi.json

say "schemathesis"
# The same requests each time.
"$tools/bin/schemathesis" run openapi.json --url "$url" --seed 1 --max-examples 50 --generation-database none --checks all ||
    { tail -n 20 log; die "schemathesis found what is above"; }
grep -q 'panicked' log && { cat log; die "the daemon panicked"; }
kill -TERM "$daemon"
wait "$daemon" || { cat log; die "the daemon did not end cleanly"; }
daemon=
