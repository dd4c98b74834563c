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


@pytest.fixture(scope="package")
def api_address(network: Network) -> str:
    return network.connect_to_root()


@pytest.fixture
def stage(network: Network, api_address: str, tmp_path: Path) -> Iterator[Stage]:
    found = Stage(network, tmp_path, api_address)
    yield found
    found.nft("flush", "ruleset")
