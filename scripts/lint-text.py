#!/usr/bin/env python3
"""Checks the texts of the repository: words, filler documentation, names of tests, links.

Rules:
  dialect     a word of scripts/dialect.txt in a tracked text file or in its path
  filler-doc  a doc comment that only repeats a name: at most two words, or no word that the item's name lacks
  test-name   a test function, or a check that a macro runs on several databases, whose name has more than seven words
  link        a relative link in Markdown whose file or heading does not exist, or is not part of the book that the page is part of

Without options, prints every finding and fails if there is one.
"""

import argparse
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORDS = ROOT / "scripts/dialect.txt"
RULES = ("dialect", "filler-doc", "test-name", "link")

# Decision records are history; the others name the words in order to forbid them, or are generated.
EXEMPT = re.compile(r"^(docs/adr/|scripts/dialect|scripts/lint-text\.py$|STYLE\.md$|.*\.lock$|LICENSE)")
MAX_TEST_NAME_WORDS = 7
MAX_FILLER_WORDS = 2
ARTICLES = {"a", "an", "the"}
# A method of a trait that we implement.
FOREIGN_NAMES = ("fn on_record(",)


def tracked_files():
    """Paths of all text files, with those that are new but not ignored, relative to the repository."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")
    for path in sorted(set(filter(None, listed))):
        # The target of a symbolic link is checked at its own path.
        if EXEMPT.match(path) or (ROOT / path).is_symlink() or not (ROOT / path).is_file():
            continue
        try:
            yield path, (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def dialect():
    """One pattern for all listed words, and the replacement of each."""
    replacements = {}
    for line in WORDS.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            words, _, replacement = line.partition(":")
            replacements.update((word.strip(), replacement.strip()) for word in words.split(","))
    alternatives = "|".join(re.escape(word).replace(r"\ ", "[ _-]") for word in sorted(replacements, key=len, reverse=True))
    return re.compile(rf"(?<![a-z])({alternatives})(?![a-z])"), replacements


def split_camel_case(line):
    """`LastWish` becomes `last_wish`, so that one pattern finds words in prose and in identifiers."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", line).lower()


def check_dialect(path, text, words):
    pattern, replacements = words
    for number, line in enumerate([path, *text.splitlines()]):
        if any(name in line for name in FOREIGN_NAMES):
            continue
        for found in pattern.findall(split_camel_case(line)):
            word = re.sub("[ _-]", " ", found)
            yield number or 1, f"`{word}`{' in the path' if number == 0 else ''}: {replacements[word]}"


def doc_blocks(lines):
    """Doc comments as (line number, words, following item, indentation); `//!` blocks have no item."""
    number = 0
    while number < len(lines):
        start = re.match(r"(\s*)//([/!])(?!/)", lines[number])
        if not start:
            number += 1
            continue
        first, marker, text = number, start.group(2), []
        while number < len(lines) and re.match(rf"\s*//{marker}(?!/)", lines[number]):
            text.append(lines[number].strip()[3:])
            number += 1
        item = ""
        if marker == "/":
            item = next((line.strip() for line in lines[number:] if not line.strip().startswith(("#", "//"))), "")
        yield first + 1, re.findall(r"[\w'’-]+", " ".join(text)), item, start.group(1)


def check_filler_docs(path, text):
    if not path.endswith(".rs"):
        return
    lines = text.splitlines()
    for number, words, item, indentation in doc_blocks(lines):
        if is_command_help(lines, number, indentation) and len(words) > 1:
            continue
        name = re.match(
            r"(?:pub(?:\([^)]*\))? )?(?:(?:default|async|const|unsafe|fn|struct|enum|trait|type|static|mod|macro_rules!) )*(\w+)",
            item,
        )
        of_name = set(split_camel_case(name.group(1)).split("_")) if name else set()
        meaning = {word.lower() for word in words} - ARTICLES
        if words and (len(words) <= MAX_FILLER_WORDS or meaning <= of_name):
            yield number, f"`{' '.join(words)}` adds nothing to `{name.group(1) if name else path}`"


def is_command_help(lines, number, indentation):
    """Whether clap prints this comment as help, where two words can be a whole sentence (`Print JSON`)."""
    if not indentation:
        attributes = lines[number - 1 : number + 6]
        return any(re.match(r"#\[derive\(.*\b(Args|Parser|Subcommand|ValueEnum)\b", line) for line in attributes)
    for line in reversed(lines[: number - 1]):
        if line.startswith("}"):
            return False
        if line.startswith("#[derive("):
            return bool(re.search(r"\b(Args|Parser|Subcommand|ValueEnum)\b", line))
    return False


def check_test_names(path, text):
    if not path.endswith(".rs"):
        return
    lines = text.splitlines()
    for macro in re.finditer(r"^ *(?:\w+::)*on_\w+!\s*[({]([^;]*?)[)}]", text, flags=re.M):
        for name in re.findall(r"\b[a-z]\w*\b(?!!)", macro.group(1)):
            words = len(name.split("_"))
            if words > MAX_TEST_NAME_WORDS:
                yield text[: macro.start()].count("\n") + 1, f"`{name}` has {words} words; {MAX_TEST_NAME_WORDS} at most"
    for number, line in enumerate(lines):
        if not re.match(r"\s*#\[(\w+::)*test\b", line):
            continue
        for offset, following in enumerate(lines[number + 1 : number + 10], start=2):
            function = re.search(r"\bfn (\w+)", following)
            if function:
                words = len([word for word in function.group(1).split("_") if word])
                if words > MAX_TEST_NAME_WORDS:
                    yield number + offset, f"`{function.group(1)}` has {words} words; {MAX_TEST_NAME_WORDS} at most"
                break


def without_code(text):
    """Markdown with its code replaced by blanks of the same number of lines."""
    blank = lambda match: "\n" * match.group(0).count("\n")
    text = re.sub(r"^(```+|~~~+).*?^\1", blank, text, flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(text):
    """The anchors that headings get on the usual hosts: lower case, no punctuation, hyphens for spaces."""
    found = set(re.findall(r'(?:id|name)="([^"]+)"', text))
    counts = Counter()
    for heading in re.findall(r"^#{1,6}\s+(.*?)\s*#*$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(f"{anchor}-{counts[anchor]}" if counts[anchor] else anchor)
        counts[anchor] += 1
    return found


def outside_of_book(path, place):
    """Why a page of the book cannot link to `place`, or that the page itself is not part of it."""
    book = ROOT / "docs"
    if not path.startswith("docs/") or path == "docs/SUMMARY.md":
        return None
    if not place.is_relative_to(book):
        return "it is not part of the book; name it without a link"
    if place.name == "README.md" and place.parent != book:
        return "link to the folder, since the book calls this page index.html"
    pages = [place] if place.suffix == ".md" else []
    listed = (book / "SUMMARY.md").read_text(encoding="utf-8")
    missing = [page for page in [ROOT / path, *pages] if f"({page.relative_to(book)})" not in listed]
    return f"docs/SUMMARY.md does not list {missing[0].relative_to(ROOT)}" if missing else None


def check_links(path, text):
    if not path.endswith(".md"):
        return
    links = r"\]\(<?([^)>\s]+)>?(?:\s+\"[^\"]*\")?\)|^\[[^\]^]+\]:\s+(\S+)|\b(?:src|href)=\"([^\"]+)\""
    for number, line in enumerate(without_code(text).splitlines(), start=1):
        for groups in re.findall(links, line):
            target = next(filter(None, groups))
            # Addresses with a scheme are not relative; paths of Rust items are checked by rustdoc.
            if re.match(r"[a-z][a-z0-9+.-]*:", target) or re.fullmatch(r"[\w:]+", target):
                continue
            file, _, anchor = target.partition("#")
            place = ((ROOT / path).parent / file).resolve() if file else ROOT / path
            if not place.exists():
                yield number, f"`{target}`: no such file"
            elif message := outside_of_book(path, place):
                yield number, f"`{target}`: {message}"
            elif anchor and place.suffix == ".md" and anchor not in anchors(place.read_text(encoding="utf-8")):
                yield number, f"`{target}`: no such heading"


def findings():
    words = dialect()
    for path, text in tracked_files():
        checks = (
            check_dialect(path, text, words),
            check_filler_docs(path, text),
            check_test_names(path, text),
            check_links(path, text),
        )
        for rule, found in zip(RULES, checks):
            for line, message in found:
                yield rule, path, line, message


def print_counts(found, paths):
    by_file = Counter((path, rule) for rule, path, _, _ in found)
    files = Counter(path for _, path, _, _ in found)
    print(f"{'total':>6} " + " ".join(f"{rule:>10}" for rule in RULES) + "  file")
    for path, total in files.most_common():
        print(f"{total:>6} " + " ".join(f"{by_file[path, rule] or '':>10}" for rule in RULES) + f"  {path}")
    per_rule = Counter(rule for rule, _, _, _ in found)
    print(f"{len(found):>6} " + " ".join(f"{per_rule[rule]:>10}" for rule in RULES) + f"  {' '.join(paths) or 'all files'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--counts", action="store_true", help="print the number of findings per file and rule")
    mode.add_argument("--words", action="store_true", help="print how often each dialect word is found")
    parser.add_argument("--rule", choices=RULES, help="only this rule")
    parser.add_argument("paths", nargs="*", help="only files below these paths")
    options = parser.parse_args()

    prefixes = tuple(options.paths)
    found = [
        (rule, path, line, message)
        for rule, path, line, message in findings()
        if options.rule in (None, rule) and (not prefixes or path.startswith(prefixes))
    ]
    if options.counts:
        print_counts(found, options.paths)
        return 0
    if options.words:
        words = Counter(re.match("`([^`]*)`", message).group(1) for rule, *_, message in found if rule == "dialect")
        print("\n".join(f"{count:>6}  {word}" for word, count in words.most_common()))
        return 0
    for rule, path, line, message in found:
        print(f"{path}:{line}: {rule}: {message}")
    return 1 if found else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:
        sys.exit(1)
