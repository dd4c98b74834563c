"""The pages of the documentation, their links and headings."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from tools import site_hooks

ROOT = Path(__file__).parents[2]
DOCS = ROOT / site_hooks.DOCS
PAGES = sorted(
    [*DOCS.rglob("*.md"), ROOT / "README.md", *(ROOT / name for name in site_hooks.BESIDE_DOCS)]
)

_CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`|^ {4}.*?$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]*)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_IN_BLOCK = re.compile(r"^(```|~~~).*?^\1|^ {4}.*?$", re.MULTILINE | re.DOTALL)


def links(page: Path) -> Iterator[str]:
    """Yield the targets of the links and pictures of a page."""
    yield from _LINK.findall(_CODE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as a forge and the site make them."""
    return {slug(text) for text in _HEADING.findall(_IN_BLOCK.sub("", page.read_text()))}


def slug(heading: str) -> str:
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading.replace("`", "").replace("*", ""))
    kept = re.sub(r"[^\w\- ]", "", unicodedata.normalize("NFC", plain).strip().lower())
    return kept.replace(" ", "-")
