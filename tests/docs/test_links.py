"""Links of the documentation, without a network, and the site's navigation."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.docs.pages import DOCS, PAGES, ROOT, anchors, links, slug
from tools import site_hooks

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    for target in links(page):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), target


@each_page
def test_links_to_other_hosts_are_well_formed(page: Path) -> None:
    for target in links(page):
        if "://" in target:
            parts = urlsplit(target)
            assert parts.scheme == "https", target
            assert "." in (parts.hostname or ""), target
            assert parts.username is None, target


class _Loader(yaml.SafeLoader):
    """A loader that reads MkDocs' tags of Python objects as nothing."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def nav() -> list[Any]:
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)
    return list(settings["nav"])


def test_the_navigation_has_every_page_once() -> None:
    there = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    named = list(site_hooks.entries(nav()))
    complete = list(site_hooks.entries(site_hooks.expanded(nav(), there - {*named})))
    assert sorted(complete) == sorted(there | {*site_hooks.BESIDE_DOCS})


@pytest.mark.parametrize(
    ("page", "link", "in_site"),
    [
        ("index.md", "start.md", "start.md"),
        ("tasks/deploy.md", "../reference/metrics.md#missing", "../reference/metrics.md#missing"),
        ("concepts/design.md", "../../CONTRIBUTING.md#layout", "../CONTRIBUTING.md#layout"),
        ("CONTRIBUTING.md", "docs/concepts/design.md", "concepts/design.md"),
        ("lab/README.md", "../README.md", "../index.md"),
        ("lab/README.md", "../docs/learn.md", "../learn.md"),
        ("index.md", "../pyproject.toml", "../pyproject.toml"),
        ("index.md", "https://example.com/docs/a.md", "https://example.com/docs/a.md"),
    ],
)
def test_links_that_leave_the_folder_are_rewritten(page: str, link: str, in_site: str) -> None:
    assert site_hooks.rewritten(f"[a]({link})", page) == f"[a]({in_site})"


def test_a_pattern_takes_the_pages_that_no_other_entry_names() -> None:
    there = ["a/2.md", "a/1.md", "b/1.md"]
    assert site_hooks.expanded([{"A": ["x.md", "a/*"]}, {"C": ["c/*"]}, "*"], there) == [
        {"A": ["x.md", "a/1.md", "a/2.md"]},
        "b/1.md",
    ]


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("Go back", "go-back"),
        ("11. The rules are right. Why?", "11-the-rules-are-right-why"),
        ("`pyproxy status --slow`", "pyproxy-status---slow"),
        ("kube-proxy's", "kube-proxys"),
    ],
)
def test_anchors_are_those_of_a_forge(heading: str, anchor: str) -> None:
    assert slug(heading) == anchor
