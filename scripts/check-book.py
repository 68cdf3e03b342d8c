#!/usr/bin/env python3
"""Checks the relative links of the built book: scripts/check-book.py FOLDER. The text lint checks those of the Markdown files."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links and the anchors of one page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.update(filter(None, [attributes.get("id"), attributes.get("name")]))
        self.links += filter(None, [attributes.get("href"), attributes.get("src")])


def main():
    root = Path(sys.argv[1]).resolve()
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in root.rglob("*.html")}
    # The error page is served for paths at any depth, so its links are relative to the address of the book.
    pages.pop(root / "404.html", None)
    if len(pages) < 20:
        sys.exit(f"error: {len(pages)} pages in {root}, at least 20 expected")
    broken = set()
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                broken.add(f"{path.relative_to(root)}: `{link}`: no such file")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                broken.add(f"{path.relative_to(root)}: `{link}`: no such heading")
    print("\n".join(sorted(broken)) or f"{len(pages)} pages, no broken links")
    return 1 if broken else 0


sys.exit(main())
