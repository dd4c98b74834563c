"""Which files the two distributions have, and that they belong together."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pyproxy_lab
import pytest

import pyproxy

from .manifests import ROOT

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def wheel(tmp_path: Path, *sources: str) -> set[str]:
    """Build a wheel of a copy of these files, and return the names of its files."""
    tree, built = tmp_path / "tree", tmp_path / "built"
    tree.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for source in map(ROOT.joinpath, sources):
        if source.is_dir():
            shutil.copytree(source, tree / source.name, ignore=ignore)
        else:
            shutil.copy(source, tree)
    command = [sys.executable, "-c", BUILD, str(built)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (found,) = built.glob("*.whl")
    with zipfile.ZipFile(found) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize(
    ("package", "sources"),
    [
        ("pyproxy", ("pyproject.toml", "README.md", "LICENSE", "pyproxy", "lab", "bench", "tests")),
        ("pyproxy_lab", ("lab/pyproject.toml", "lab/README.md", "lab/pyproxy_lab")),
    ],
)
def test_a_wheel_has_its_own_package_and_nothing_else(
    package: str, sources: tuple[str, ...], tmp_path: Path
) -> None:
    files = wheel(tmp_path, *sources)
    folders = {name.partition("/")[0] for name in files}
    assert folders == {package, f"{package}-{pyproxy.__version__}.dist-info"}
    assert f"{package}/py.typed" in files
    assert not [name for name in files if re.search(r"/(lab|bench|tests?)/", f"/{name}")] or (
        package == "pyproxy_lab"
    )
    modules = ROOT.joinpath(*(["lab"] if package == "pyproxy_lab" else []), package)
    assert {name for name in files if name.endswith(".py")} == {
        str(path.relative_to(modules.parent)) for path in modules.rglob("*.py")
    }


def test_the_lab_needs_pyproxy_of_its_own_version() -> None:
    lab = tomllib.loads((ROOT / "lab/pyproject.toml").read_text())["project"]
    assert pyproxy_lab.__version__ == pyproxy.__version__
    assert f"pyproxy=={pyproxy.__version__}" in lab["dependencies"]
