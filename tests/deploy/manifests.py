"""Where the manifests are, and how they are read and rendered."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from .gotemplate import Files, render

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "base"
CHART = DEPLOY / "helm" / "pyproxy"
MONITORING = DEPLOY / "monitoring"
SERVERS = ["https://a.example:6443", "https://b.example:6443"]
RELEASE = {"Name": "pyproxy", "Namespace": "kube-system"}

Object = dict[str, Any]


def tool(name: str) -> str:
    """Find a program, be it beside this Python, or skip the test that needs it."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], beside]))
    if found is None:
        pytest.skip(f"needs the command {name}")
    return found


def objects(text: str) -> list[Object]:
    return [each for each in yaml.safe_load_all(text) if each is not None]


def the(kind: str, among: list[Object], name: str = "pyproxy") -> Object:
    """Give the one object of a kind and name."""
    (found,) = (o for o in among if o["kind"] == kind and o["metadata"]["name"] == name)
    return found


def kustomized(folder: Path) -> list[Object]:
    """Render a kustomization with kubectl, or skip where there is none."""
    done = subprocess.run(
        [tool("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return objects(done.stdout)


def values(**given: Any) -> Object:
    """The chart's values, with some of them given as `helm --set-json` would."""
    return _merged(yaml.safe_load((CHART / "values.yaml").read_text()), given)


def chart(**given: Any) -> list[Object]:
    """Render the chart. Raises TemplateError."""
    return [
        each
        for path in sorted((CHART / "templates").glob("*.yaml"))
        for each in objects(render(path.read_text(), _root(given)))
    ]


def notes() -> str:
    return render((CHART / "templates" / "NOTES.txt").read_text(), _root({}))


def _root(given: Object) -> Object:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    return {
        "Values": values(**given),
        "Release": RELEASE,
        "Chart": {"AppVersion": str(about["appVersion"])},
        "Files": Files(CHART),
    }


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Object:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            result[key] = _merged(old, value)
        else:
            result[key] = value
    return result


def agent(among: list[Object]) -> Object:
    """Give the agent's container."""
    (found,) = the("DaemonSet", among)["spec"]["template"]["spec"]["containers"]
    return dict(found)
