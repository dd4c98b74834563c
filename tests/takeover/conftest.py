"""Namespaces with kube-proxy's leftovers, where this machine has the tools to make them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.network import Network

from tests.namespaces import empty_namespace

from .scenes import TOOLS


@pytest.fixture(scope="session")
def tools() -> None:
    for tool in TOOLS:
        if shutil.which(tool) is None:
            pytest.skip(f"needs the command {tool}")


@pytest.fixture
def here(tools: None) -> Iterator[Namespace]:
    """An empty network namespace."""
    with empty_namespace("takeover") as made:
        yield made


@pytest.fixture
def network(tools: None) -> Iterator[Network]:
    with Network() as made:
        yield made
