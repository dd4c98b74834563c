"""A network namespace for commits of hostile objects."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyproxy_lab.namespace import Namespace

from tests.namespaces import empty_namespace


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """An empty network namespace."""
    with empty_namespace("fuzz") as made:
        yield made
