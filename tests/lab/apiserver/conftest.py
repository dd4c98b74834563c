from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings

from tests.lab.api import Api


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer.running(Settings()) as running:
        yield running


@pytest.fixture
def api(server: ApiServer) -> Api:
    return Api(server.url)
