#!/usr/bin/env python3
"""Packages every publishable crate of the workspace and checks what would be uploaded.

The list of crates comes from `cargo metadata`. Checked are the metadata that the registry shows, the files of each package
(README, both licences, nothing private, nothing large), and that `include_str!` and `include_bytes!` name files inside the package.

    scripts/check-packages.py             without building the packages, in seconds
    scripts/check-packages.py --verify    builds each package as a user of the registry does, in minutes
"""

import json
import posixpath
import re
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIRED_METADATA = ("description", "keywords", "categories", "license", "readme", "rust_version")
REQUIRED_FILES = ("Cargo.toml", "README.md", "LICENSE-MIT", "LICENSE-APACHE")
FORBIDDEN_FILES = re.compile(r"(^|/)(\.env|target|\.git)(/|$)|\.(db|db-wal|db-shm|log|snap\.new|pem|key)$")
# The registry accepts 10 MB. Ours are far below; a package that grows suddenly contains what does not belong there.
MAX_FILE_BYTES = 1_000_000
MAX_PACKAGE_BYTES = 2_000_000
# The registry accepts five keywords of 20 characters and five categories.
MAX_KEYWORDS = 5


def metadata():
    command = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--locked"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)


def check_metadata(crate):
    for key in REQUIRED_METADATA:
        if not crate[key]:
            yield f"`{key}` is missing in Cargo.toml"
    if len(crate["keywords"]) > MAX_KEYWORDS or any(len(word) > 20 for word in crate["keywords"]):
        yield "too many keywords, or one of more than 20 characters"
    if len(crate["categories"]) > MAX_KEYWORDS:
        yield "too many categories"


def check_package(archive, prefix):
    """Findings of one .crate file, which contains every file below `prefix`."""
    if archive.stat().st_size > MAX_PACKAGE_BYTES:
        yield f"{archive.stat().st_size} bytes, {MAX_PACKAGE_BYTES} at most"
    with tarfile.open(archive) as package:
        members = {member.name.removeprefix(prefix): member for member in package.getmembers()}
        for name in REQUIRED_FILES:
            if name not in members:
                yield f"{name} is missing"
        for name, member in sorted(members.items()):
            if FORBIDDEN_FILES.search(name):
                yield f"{name} does not belong into a package"
            if member.size > MAX_FILE_BYTES:
                yield f"{name} has {member.size} bytes, {MAX_FILE_BYTES} at most"
            if not member.isfile():
                yield f"{name} is not a regular file"
            elif name.endswith(".rs"):
                yield from check_includes(name, package.extractfile(member).read().decode(), members)


def check_includes(name, source, members):
    for included in re.findall(r'include_(?:str|bytes)!\(\s*"([^"]+)"', source):
        if posixpath.normpath(posixpath.join(posixpath.dirname(name), included)) not in members:
            yield f"{name} includes {included}, which is not in the package"


def main():
    verify = sys.argv[1:] == ["--verify"]
    if sys.argv[1:] and not verify:
        sys.exit("usage: scripts/check-packages.py [--verify]")
    workspace = metadata()
    # `publish = false` is an empty list.
    crates = [crate for crate in workspace["packages"] if crate["publish"] != []]
    private = [crate["name"] for crate in workspace["packages"] if crate["publish"] == []]

    command = ["cargo", "package", "--quiet", "--locked", "--allow-dirty", "--workspace"]
    command += [] if verify else ["--no-verify"]
    command += [argument for name in private for argument in ("--exclude", name)]
    subprocess.run(command, cwd=ROOT, check=True)

    failed = False
    for crate in sorted(crates, key=lambda crate: crate["name"]):
        name = f"{crate['name']}-{crate['version']}"
        archive = Path(workspace["target_directory"]) / "package" / f"{name}.crate"
        findings = [*check_metadata(crate), *check_package(archive, f"{name}/")]
        print(f"{name}: {archive.stat().st_size / 1000:.0f} kB" + (f", {len(findings)} findings" if findings else ""))
        for finding in findings:
            failed = True
            print(f"error: {crate['name']}: {finding}")
    print(f"not published: {', '.join(sorted(private))}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
