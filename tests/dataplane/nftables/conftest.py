"""Namespaces to program."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyproxy_lab.namespace import Namespace

from tests.namespaces import empty_namespace


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    """An empty network namespace that the tests of a module share."""
    with empty_namespace("nft") as made:
        yield made
