"""Namespaces to program."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyproxy_lab.namespace import Namespace

from tests.namespaces import empty_namespace


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    """An empty network namespace, for a module's tests to use in turn."""
    with empty_namespace("nft") as made:
        yield made
