"""Namespaces in which the tests break things."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyproxy_lab.cluster import Cluster
from pyproxy_lab.namespace import Namespace

from tests.namespaces import empty_namespace


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """Make an empty network namespace with its loopback interface up."""
    with empty_namespace("chaos") as made:
        made.ip(["link set lo up"])
        yield made


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Make two nodes with pods, and an API server, that a module's tests share."""
    with Cluster() as made:
        yield made
