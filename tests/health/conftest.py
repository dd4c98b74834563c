"""Fixtures of the health tests: a server, a client, ports, and a clock."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import msgspec
import pytest

from pyproxy.health.http import HttpThread
from pyproxy.health.limits import PoolSizes, within
from pyproxy.health.slow import SlowThread
from tests.ports import reserved_port
from tests.waiting import PATIENCE


class Reply(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: str


class Get(Protocol):
    """Send one request to a port; its response may be late."""

    def __call__(self, port: int | None, path: str = "/", host: str = "127.0.0.1") -> Reply: ...


class Clock:
    """A clock that a test advances: monotonic seconds, and nanoseconds since the epoch."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def wall(self) -> int:
        return 1_763_690_258_000_000_000 + round(self.seconds * 10**9)


LIMITS = within(1024)


@contextmanager
def running_http(sizes: PoolSizes = LIMITS.public) -> Iterator[HttpThread]:
    slow = SlowThread()
    slow.start()
    thread = HttpThread("http", sizes, slow)
    thread.start()
    try:
        yield thread
    finally:
        thread.stop()
        slow.stop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def http_thread() -> Iterator[HttpThread]:
    with running_http() as thread:
        yield thread


@pytest.fixture
def get() -> Get:
    def get(port: int | None, path: str = "/", host: str = "127.0.0.1") -> Reply:
        assert port is not None, "nothing is served there"
        connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return Reply(response.status, dict(response.headers), response.read().decode())
        finally:
            connection.close()

    return get


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """A port of 127.0.0.1 that another program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def free_port() -> Iterator[int]:
    with reserved_port() as port:
        yield port
