"""The lab's list of models is what the Kubernetes client has."""

from __future__ import annotations

import json
from pathlib import Path

import pyproxy_lab.apiserver
import pytest
from kubernetes import client

from tools import kubernetes_models

FILE = Path(pyproxy_lab.apiserver.__file__).with_name("models.json")


def test_the_models_are_those_of_the_client() -> None:
    text = FILE.read_text()
    if (version := json.loads(text)["client"]) != client.__version__:
        pytest.skip(f"another version of the client than {version}, which `make generate` read")
    assert text == kubernetes_models.generate()
