from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyproxy_lab.network import Network

from tests.agent.live import Stage


@pytest.fixture(scope="package")
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


@pytest.fixture
def stage(network: Network, tmp_path: Path) -> Iterator[Stage]:
    found = Stage(network, tmp_path)
    yield found
    found.nft("flush", "ruleset")
