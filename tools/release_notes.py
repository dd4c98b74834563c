"""Print the notes of a release from CHANGELOG.md, and check that every file has its version.

    tools/release_notes.py v0.2.0 >notes.md

The release workflow calls it with the tag. The changelog follows keepachangelog.com: a heading
`## [0.2.0] - 2026-12-01` for each version, newest first, below `## [Unreleased]`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADING = re.compile(r"^## \[(?P<version>[^]]+)\](?: - (?P<date>\d{4}-\d\d-\d\d))?$", re.MULTILINE)
PLACES = {
    "pyproxy/__init__.py": r'^__version__ = "(.+)"$',
    "lab/pyproxy_lab/__init__.py": r'^__version__ = "(.+)"$',
    "lab/pyproject.toml": r'^ +"kube-pyproxy==(.+)",$',
    "deploy/helm/pyproxy/Chart.yaml": r"^(?:version|appVersion): (.+)$",
    "deploy/base/daemonset.yaml": r"^ +image: pyproxy:(.+)$",
    "deploy/cleanup/daemonset.yaml": r"^ +image: pyproxy:(.+)$",
    "deploy/kubeadm-swap.yaml": r"\bpyproxy:([^\"\s]+)",
}
"""Files that have the version, with the pattern of each place in them."""


class ReleaseError(Exception):
    """A tag that cannot be released, in one line."""


def section(changelog: str, version: str) -> str:
    """Return the text below the heading of a version. Raises ReleaseError if it is no release."""
    headings = list(HEADING.finditer(changelog))
    heading = next((each for each in headings if each["version"] == version), None)
    if heading is None:
        raise ReleaseError(f"CHANGELOG.md: no heading ## [{version}]")
    if heading["date"] is None:
        raise ReleaseError(f"CHANGELOG.md: the heading of {version} has no date")
    end = next((e.start() for e in headings if e.start() > heading.start()), len(changelog))
    text = changelog[heading.end() : end].strip()
    if not text:
        raise ReleaseError(f"CHANGELOG.md: nothing below the heading of {version}")
    return text


def versions(root: Path) -> dict[str, set[str]]:
    """Return the versions that each file of PLACES has."""
    return {
        path: set(re.findall(pattern, (root / path).read_text(), re.MULTILINE))
        for path, pattern in PLACES.items()
    }


def notes(root: Path, tag: str) -> str:
    """Return the notes of the release that a tag names. Raises ReleaseError."""
    version = tag.removeprefix("v")
    if not re.fullmatch(r"v\d+\.\d+\.\d+", tag):
        raise ReleaseError(f"{tag}: not a version such as v0.2.0")
    for path, found in versions(root).items():
        if found != {version}:
            raise ReleaseError(f"{path}: version {', '.join(sorted(found))}, not {version}")
    return section((root / "CHANGELOG.md").read_text(), version)


def main() -> int:
    """Print the notes of the tag that is the only argument."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(notes(ROOT, sys.argv[1]))
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
