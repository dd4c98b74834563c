"""Which files the two distributions have, and that they belong together."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
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


@pytest.mark.parametrize(
    ("package", "project"),
    [("pyproxy", "pyproject.toml"), ("lab/pyproxy_lab", "lab/pyproject.toml")],
)
def test_every_imported_package_is_a_dependency(package: str, project: str) -> None:
    # The lab may use what pyproxy, on which it depends, brings along.
    declared = {
        distribution(each)
        for part in {project, "pyproject.toml"}
        for each in tomllib.loads((ROOT / part).read_text())["project"]["dependencies"]
    }
    providers = importlib.metadata.packages_distributions()
    imported = {
        name: distributions
        for path in (ROOT / package).rglob("*.py")
        for name in imports(path)
        if (distributions := {distribution(each) for each in providers.get(name, ())})
    }
    own = {"pyproxy"} if package == "pyproxy" else {"pyproxy-lab"}
    assert {name for name, by in imported.items() if not by & (declared | own)} == set()


def distribution(requirement: str) -> str:
    """Return the normalised name of a distribution, without its versions."""
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")


def imports(path: Path) -> Iterator[str]:
    """Yield the packages that a module imports anywhere, but for its own and __future__."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
