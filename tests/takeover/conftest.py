"""Namespaces with kube-proxy's leftovers, where this machine has the tools to make them."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator

import pytest

from pyproxy.lab.namespace import Namespace, ip
from pyproxy.lab.network import Network

from .scenes import TOOLS

NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def tools() -> None:
    for tool in TOOLS:
        if shutil.which(tool) is None:
            pytest.skip(f"needs the command {tool}")


@pytest.fixture
def here(tools: None) -> Iterator[Namespace]:
    """An empty network namespace."""
    made = Namespace(f"takeover{os.getpid()}-{next(NUMBERS)}")
    ip([f"netns add {made.name}"])
    try:
        yield made
    finally:
        ip([f"netns del {made.name}"])


@pytest.fixture
def network(tools: None) -> Iterator[Network]:
    with Network() as made:
        yield made
