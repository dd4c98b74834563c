"""A namespace for each test to program, and both flavours to program it in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.model.flavour import Flavour
from tests.namespaces import empty_namespace


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """An empty network namespace."""
    with empty_namespace("ipt") as made:
        yield made


@pytest.fixture(params=list(Flavour), ids=lambda flavour: flavour.value)
def flavour(request: pytest.FixtureRequest) -> Flavour:
    """Legacy, and then nft."""
    assert isinstance(request.param, Flavour)
    return request.param
