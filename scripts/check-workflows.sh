#!/usr/bin/env bash
# Validates the files below .github/ against their JSON Schemas with check-jsonschema (from PyPI, into target/tools/workflows).
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$PWD/target/tools/workflows
if ! command -v "$tools/bin/check-jsonschema" >/dev/null; then
    { python3 -m venv "$tools" &&
        "$tools/bin/pip" install --quiet --disable-pip-version-check 'check-jsonschema==0.39.0'; } >/dev/null 2>&1 ||
        { echo "SKIPPED: check-jsonschema cannot be installed from PyPI; .github/ is not validated"; rm -rf "$tools"; exit 0; }
fi
check() { "$tools/bin/check-jsonschema" --builtin-schema "$@"; }
check vendor.github-workflows .github/workflows/*.yml
check custom.github-workflows-require-timeout .github/workflows/*.yml
check vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
for form in .github/ISSUE_TEMPLATE/*.yml; do
    [[ $form == */config.yml ]] || check vendor.github-issue-forms "$form"
done
