"""Read the manifests, and render them with the tools that a cluster's operator uses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "base"
CHART = DEPLOY / "helm" / "pyproxy"
MONITORING = DEPLOY / "monitoring"
SERVERS = ["https://a.example:6443", "https://b.example:6443"]
NAMESPACE = "kube-system"

Object = dict[str, Any]


def tool(name: str) -> str:
    """Find a program on PATH or beside this Python, or skip the test that needs it."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], beside]))
    if found is None:
        pytest.skip(f"needs the command {name}")
    return found


def objects(text: str) -> list[Object]:
    return [each for each in yaml.safe_load_all(text) if each is not None]


def the(kind: str, among: list[Object], name: str = "pyproxy") -> Object:
    """Return the one object of a kind and name."""
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


def helm(*words: str, **values: Any) -> str:
    """Run helm with values as `--set-json` takes them, or skip where there is none.

    Raises subprocess.CalledProcessError.
    """
    sets = [f"--set-json={key}={json.dumps(value)}" for key, value in values.items()]
    command = [tool("helm"), *words, str(CHART), "--namespace", NAMESPACE, *sets]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def chart(**values: Any) -> list[Object]:
    """Render the chart with helm, as `helm`."""
    return objects(helm("template", "pyproxy", **values))


def agent(among: list[Object]) -> Object:
    """Return the agent's container."""
    (found,) = the("DaemonSet", among)["spec"]["template"]["spec"]["containers"]
    return dict(found)
