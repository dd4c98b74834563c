"""One network for all tests of a module, and one agent after another in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyproxy_lab.network import Network


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as made:
        yield made
