"""A namespace for each test to program, and both flavours to program it in."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from pyproxy.lab.namespace import Namespace, ip
from pyproxy.model.flavour import Flavour

NUMBERS = itertools.count()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """An empty network namespace."""
    made = Namespace(f"ipt{os.getpid()}-{next(NUMBERS)}")
    ip([f"netns add {made.name}"])
    try:
        yield made
    finally:
        ip([f"netns del {made.name}"])


@pytest.fixture(params=list(Flavour), ids=lambda flavour: flavour.value)
def flavour(request: pytest.FixtureRequest) -> Flavour:
    """Legacy, and then nft."""
    assert isinstance(request.param, Flavour)
    return request.param
