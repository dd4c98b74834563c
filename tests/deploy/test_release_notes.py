"""Cut release notes from the changelog, and keep the versions of all files equal."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

import pyproxy
from tools import release_notes
from tools.release_notes import HEADING, PLACES, ReleaseError

from .manifests import ROOT

CHANGELOG = """# Changelog

## [Unreleased]

## [0.2.0] - 2026-12-01

Text.

### Fixed

- A bug.

## [0.1.1]

- Undated.

## [0.1.0] - 2026-11-22

## [0.0.9] - 2026-11-21

Last.
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a tree with the files of this one, and CHANGELOG."""
    for path in PLACES:
        copy = tmp_path / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((ROOT / path).read_text().replace(pyproxy.__version__, "0.2.0"))
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    return tmp_path


def test_every_file_has_the_version() -> None:
    assert release_notes.versions(ROOT) == {path: {pyproxy.__version__} for path in PLACES}


def test_notes_are_the_section_of_the_version(tree: Path) -> None:
    assert release_notes.notes(tree, "v0.2.0") == "Text.\n\n### Fixed\n\n- A bug."
    assert release_notes.section(CHANGELOG, "0.0.9") == "Last."


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("0.2.0", "0.2.0: not a version such as v0.2.0"),
        ("v0.2", "v0.2: not a version such as v0.2.0"),
        ("v0.3.0", "pyproxy/__init__.py: version 0.2.0, not 0.3.0"),
    ],
)
def test_a_tag_of_another_version_is_an_error(tag: str, message: str, tree: Path) -> None:
    with pytest.raises(ReleaseError) as error:
        release_notes.notes(tree, tag)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("9.9.9", "CHANGELOG.md: no heading ## [9.9.9]"),
        ("0.1.1", "CHANGELOG.md: the heading of 0.1.1 has no date"),
        ("0.1.0", "CHANGELOG.md: nothing below the heading of 0.1.0"),
    ],
)
def test_a_version_without_notes_is_an_error(version: str, message: str) -> None:
    with pytest.raises(ReleaseError) as error:
        release_notes.section(CHANGELOG, version)
    assert str(error.value) == message


def test_the_changelog_is_newest_first_with_known_parts() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    found = [heading["version"] for heading in HEADING.finditer(text)]
    assert found[0] == "Unreleased"
    numbers = [tuple(map(int, version.split("."))) for version in found[1:]]
    assert numbers
    assert all(newer > older for newer, older in pairwise(numbers))
    lines = text.splitlines()
    assert sum(line.startswith("## ") for line in lines) == len(found)
    assert {line for line in lines if line.startswith("### ")} <= {
        f"### {part}" for part in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
    }
