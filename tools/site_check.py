"""Check a built site: no request to another host, and links that lead to a file and an anchor.

python tools/site_check.py build/site
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src"}
_IN_STYLE = re.compile(r"url\([\"']?((?:https?:)?//[^)\"']*)")
_LOADED_LINKS = {"stylesheet", "icon", "preconnect", "preload", "modulepreload"}


class Page(HTMLParser):
    """The addresses that a page loads or links to, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the addresses of one element."""
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and _LOADED_LINKS & set(values.get("rel", "").split()):
            self.loaded.append(values.get("href", ""))
        elif tag in _LOADED and values.get(_LOADED[tag]):
            self.loaded.append(values[_LOADED[tag]])


@cache
def read(path: Path) -> Page:
    """Parse a page."""
    return Page(path.read_text())


def mistakes(site: Path) -> Iterator[str]:
    """Yield one line for each mistake in the pages of a site."""
    # The error page is served under any path, so its links begin with a slash.
    for path in sorted(site.rglob("*.html")):
        page = read(path)
        for address in page.loaded:
            if urlsplit(address).netloc:
                yield f"{path}: loads {address}"
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            name = unquote(parts.path)
            target = (path.parent / name).resolve() if name else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                yield f"{path}: {link}: there is no such file"
            elif parts.fragment and unquote(parts.fragment) not in read(target).anchors:
                yield f"{path}: {link}: there is no such anchor"
    for path in sorted(site.rglob("*.css")):
        yield from (f"{path}: loads {each}" for each in _IN_STYLE.findall(path.read_text()))


def main() -> int:
    """Print the mistakes of the site that the command line names; return a status."""
    found = list(mistakes(Path(sys.argv[1])))
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
