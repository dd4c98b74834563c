"""Build the distributions and the chart, install them in empty environments, and run them.

PYPROXY_DIST_PYTHONS names further interpreters to install them for; `make dist-check` sets it.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyproxy_lab
import pytest

import pyproxy

from .manifests import ROOT, SERVERS, objects, the, tool

PYTHONS = os.environ.get("PYPROXY_DIST_PYTHONS", sys.executable).split()
VERSION = pyproxy.__version__


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with everything that `make dist` builds from the last commit."""
    # Not `build`, which is also the name of the folder of other targets.
    pytest.importorskip("uv", reason="needs the extra release")
    tool("helm")
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [ROOT / "tools/dist.sh", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("PASSED") == 4, done.stdout
    return folder


def output(*command: str | Path) -> str:
    """Return what a command prints; its error output is the failure's reason."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_files_have_the_version(dist: Path) -> None:
    assert {path.name for path in dist.iterdir()} == {
        f"kube_pyproxy-{VERSION}-py3-none-any.whl",
        f"kube_pyproxy-{VERSION}.tar.gz",
        f"pyproxy_lab-{VERSION}-py3-none-any.whl",
        f"pyproxy_lab-{VERSION}.tar.gz",
        f"pyproxy-{VERSION}.tgz",
    }


@pytest.mark.parametrize(
    ("distribution", "folder", "package"),
    [("kube_pyproxy", "", "pyproxy"), ("pyproxy_lab", "lab/", "pyproxy_lab")],
)
def test_distributions_have_their_own_package_and_nothing_else(
    distribution: str, folder: str, package: str, dist: Path
) -> None:
    tracked = output("git", "-C", ROOT, "ls-tree", "-r", "--name-only", "HEAD", folder + package)
    wanted = {line.removeprefix(folder) for line in tracked.split()}
    assert f"{package}/py.typed" in wanted

    with zipfile.ZipFile(dist / f"{distribution}-{VERSION}-py3-none-any.whl") as wheel:
        files = set(wheel.namelist())
    info = f"{distribution}-{VERSION}.dist-info/"
    assert {name for name in files if not name.startswith(info)} == wanted
    assert f"{info}licenses/LICENSE" in files

    with tarfile.open(dist / f"{distribution}-{VERSION}.tar.gz") as sdist:
        names = {each.name.partition("/")[2] for each in sdist if each.isfile()}
    made = {"PKG-INFO", "setup.cfg", "MANIFEST.in"}
    assert {name for name in names if f"{distribution}.egg-info/" not in name} - made == (
        wanted | {"LICENSE", "README.md", "pyproject.toml"}
    )


@pytest.mark.parametrize("python", PYTHONS)
def test_each_runs_in_an_empty_environment(python: str, dist: Path, tmp_path: Path) -> None:
    uv = (sys.executable, "-m", "uv", "--quiet")
    programs = tmp_path / "bin"
    output(*uv, "venv", "--python", python, tmp_path)
    install = (*uv, "pip", "install", "--python", programs / "python")

    output(*install, *dist.glob("kube_pyproxy-*.whl"))
    found = json.loads(output(programs / "pyproxy", "version", "-o", "json"))
    assert found["version"] == VERSION
    expected = output(programs / "python", "-c", "import platform as p; print(p.python_version())")
    assert found["python"] == f"CPython {expected.strip()}"
    assert output(programs / "kube-proxy", "--version").startswith("Kubernetes v")
    assert "pyproxy" in output(programs / "kubectl-pyproxy", "--help")

    output(*install, *dist.glob("*.whl"))
    assert "up" in output(programs / "pyproxy", "lab", "--help")


def test_the_packaged_chart_renders(dist: Path) -> None:
    text = output(
        *(tool("helm"), "template", "pyproxy", dist / f"pyproxy-{VERSION}.tgz"),
        f"--set-json=apiServers={json.dumps(SERVERS)}",
        "--set-json=prometheusRule.enabled=true",
    )
    rendered = objects(text)
    (container,) = the("DaemonSet", rendered)["spec"]["template"]["spec"]["containers"]
    assert container["image"].endswith(f":{VERSION}")
    assert the("PrometheusRule", rendered)["spec"]["groups"]


def test_the_lab_needs_pyproxy_of_its_own_version() -> None:
    lab = tomllib.loads((ROOT / "lab/pyproject.toml").read_text())["project"]
    assert pyproxy_lab.__version__ == pyproxy.__version__
    assert f"kube-pyproxy=={pyproxy.__version__}" in lab["dependencies"]


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
    own = {"kube-pyproxy"} if package == "pyproxy" else {"pyproxy-lab"}
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
