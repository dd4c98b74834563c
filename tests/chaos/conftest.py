"""Namespaces to do harm in."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from pyproxy.lab.cluster import Cluster
from pyproxy.lab.namespace import Namespace, ip

NUMBERS = itertools.count()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """An empty network namespace with its loopback interface up."""
    made = Namespace(f"chaos{os.getpid()}-{next(NUMBERS)}")
    ip([f"netns add {made.name}"])
    try:
        made.ip(["link set lo up"])
        yield made
    finally:
        ip([f"netns del {made.name}"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes with pods, and an API server, for a module's tests to use in turn."""
    with Cluster() as made:
        yield made
