"""Hooks of MkDocs: build the site from pages that also read well on a forge.

A link that leaves docs/, such as `../CONTRIBUTING.md`, is right on a forge and wrong in a site. The
pages that such links lead to are added to the site, and the links are rewritten. An entry of `nav`
that is a pattern stands for all pages that match it and that no other entry names, so that a new
page needs no line there.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

DOCS = "docs"
FIRST_PAGE = "index.md"
BESIDE_DOCS = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "lab/README.md",
    "tests/conformance/CASES.md",
)
"""Pages outside docs/ that are part of the site, under the same path."""

_LINK = re.compile(r"\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Expand the patterns of `nav`."""
    there = sorted(str(path.relative_to(DOCS)) for path in Path(DOCS).rglob("*.md"))
    named = set(entries(config.nav))
    config.nav = expanded(config.nav, [page for page in there if page not in named])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/."""
    from mkdocs.structure.files import File  # noqa: PLC0415

    for name in BESIDE_DOCS:
        files.append(File.generated(config, name, abs_src_path=str(Path(name).resolve())))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Rewrite the links between docs/ and the pages outside it."""
    return rewritten(markdown, page.file.src_uri)


def rewritten(markdown: str, page: str) -> str:
    """Return a page with links from paths in the tree to paths in the site, where both differ."""
    here = posixpath.dirname(page)
    folder = posixpath.dirname(page if page in BESIDE_DOCS else f"{DOCS}/{page}")

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        if target == "README.md":
            in_site = FIRST_PAGE
        elif target in BESIDE_DOCS:
            in_site = target
        elif target.startswith(f"{DOCS}/"):
            in_site = target.removeprefix(f"{DOCS}/")
        else:
            return match[0]  # not in the site: MkDocs names it
        return f"]({posixpath.relpath(in_site, here or '.')}{match[2] or ''})"

    return _LINK.sub(link, markdown)


def entries(nav: Any) -> Iterator[str]:
    """Yield the paths and patterns of `nav`."""
    if isinstance(nav, str):
        yield nav
    for each in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from entries(each)


def expanded(nav: list[Any], unnamed: Collection[str]) -> list[Any]:
    """Return `nav` with the first pattern that matches replaced by each of the unnamed pages.

    A section that is empty afterwards is left out.
    """
    left = set(unnamed)

    def expand(items: list[Any]) -> Iterator[Any]:
        for item in items:
            if isinstance(item, str) and "*" in item:
                matching = sorted(page for page in left if fnmatch(page, item))
                left.difference_update(matching)
                yield from matching
            elif isinstance(item, dict) and isinstance(below := next(iter(item.values())), list):
                if found := list(expand(below)):
                    yield {next(iter(item)): found}
            else:
                yield item

    return list(expand(nav))
