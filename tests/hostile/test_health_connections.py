"""Connections of pods to the health port: none keeps the kubelet or a load balancer waiting."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from pyproxy_lab.process import pipes

from pyproxy.health import http
from tests.hostile.health_node import (
    HEALTH,
    LIMITS,
    NODE,
    NODE6,
    OTHER_POD,
    POD,
    HealthNode,
    health_node,
)
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel

IDLE = 600
CONNECTIONS = 'pyproxy_http_connections_total{listener="health"}'


@pytest.fixture
def here() -> Iterator[HealthNode]:
    with health_node() as made:
        yield made


@contextmanager
def idle_connections(here: HealthNode, count: int) -> Iterator[list[socket.socket]]:
    """Connect from the pod as often, and send nothing."""
    with ExitStack() as stack:

        def connect() -> list[socket.socket]:
            return [
                stack.enter_context(socket.create_connection((NODE, HEALTH), PATIENCE, (POD, 0)))
                for _ in range(count)
            ]

        yield here.pod.call(connect)


def test_idle_connections_leave_the_port_to_others(
    here: HealthNode, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A connection that ends meanwhile would not be counted with those that the share ends.
    monkeypatch.setattr(http, "_HEAD_TIMEOUT", 10 * PATIENCE)
    with idle_connections(here, IDLE):
        share = LIMITS.public.waiting_share
        until(lambda: here.dropped("share") == IDLE - share)
        assert here.open_connections() == share
        # The kubelet, a load balancer, and the pod itself, which is a newcomer each time.
        assert [here.get(here.node) for _ in range(8)] == [200] * 8
        assert [here.get(here.node, host=NODE6) for _ in range(8)] == [200] * 8
        assert [here.get(here.pod, source=OTHER_POD) for _ in range(8)] == [200] * 8
        assert [here.get(here.pod, source=POD) for _ in range(8)] == [200] * 8
    (line,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert POD in line.message


def test_a_connection_without_a_request_ends(here: HealthNode) -> None:
    with idle_connections(here, 2) as (silent, slow):
        slow.sendall(b"GET /livez HTTP/1.1\r\nX: ")
        until(lambda: here.dropped("timeout") == 2)
        for each in (silent, slow):
            with pytest.raises(ConnectionResetError):
                each.recv(1)
        assert here.open_connections() == 0


def test_every_probe_is_answered_during_a_flood(here: HealthNode) -> None:
    attack = [sys.executable, "-m", "bench.hostile_clients", "idle-connections", NODE, str(HEALTH)]
    process = here.pod.start(attack, stdin=subprocess.PIPE, output=subprocess.PIPE)
    stdin, stdout = pipes(process)
    try:
        assert stdout.readline() == b"ready\n"
        assert [here.get(here.node) for _ in range(100)] == [200] * 100
        assert [here.get(here.pod, source=OTHER_POD) for _ in range(20)] == [200] * 20
        until(lambda: here.series()[CONNECTIONS] > 2000, "a flood during the probes")
    finally:
        stdin.close()
        process.wait()
        stdout.close()


def test_the_node_has_an_accept_queue_of_its_own(here: HealthNode) -> None:
    """The thread of all others does not run at all here, as if it were far behind."""
    stopped = here.servers.http
    stopped.stop()
    with idle_connections(here, 1):
        assert here.get(here.node) == 200
        assert here.get(here.node, host="127.0.0.1") == 200
        assert here.get(here.node, host="::1") == 200
