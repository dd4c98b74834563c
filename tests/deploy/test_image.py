"""Check the Dockerfile and the scripts without running them."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from .manifests import ROOT, tool

DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "deploy/image/requirements.txt").read_text()
SCRIPTS = sorted([*(ROOT / "tools").glob("*.sh"), *(ROOT / "deploy").rglob("*.sh")])


def in_build_context(path: str) -> bool:
    """Return whether .dockerignore keeps a path in the context: the last matching pattern wins."""
    found = True
    for line in (ROOT / ".dockerignore").read_text().split():
        pattern = line.removeprefix("!")
        if fnmatch.fnmatch(path, pattern) or path.startswith(f"{pattern}/"):
            found = line.startswith("!")
    return found


def test_copied_files_are_in_the_build_context() -> None:
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert {"pyproxy", "pyproject.toml"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert in_build_context(source), source
    for source in (".venv", ".git", "lab", "lab/pyproxy_lab", "bench", "tests"):
        assert not in_build_context(source), source
        assert source not in copied


def test_the_image_pins_each_dependency_of_pyproxy_and_none_of_the_lab() -> None:
    pinned = re.findall(
        r"^([a-z0-9-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", LOCK, re.M
    )
    assert len(pinned) == len(re.findall(r"==", LOCK))
    versions = {name: tuple(map(int, version.split("."))) for name, version, _ in pinned}
    for wanted in PROJECT["dependencies"]:
        name, _, least = wanted.lower().partition(">=")
        assert versions[name] >= tuple(map(int, least.split("."))), name
    assert not versions.keys() & {"pyproxy-lab", "matplotlib"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_have_no_mistakes_that_shellcheck_knows(script: Path) -> None:
    done = subprocess.run(
        [tool("shellcheck"), str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert script.stat().st_mode & 0o111
