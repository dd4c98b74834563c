"""Connections on the fast path, as the inspection commands show them.

Before Linux 5.14 there is none, and the commands say so.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from tests.agent.live import endpoint_slice, service
from tests.inspect.node import CommandResult, InspectedNode, inspected_node

pytestmark = [pytest.mark.vm, pytest.mark.packets]

WEB, ENDPOINT, CLIENT = "10.96.0.10", "10.244.2.11", "10.244.1.12"
PORT = {"name": "http", "protocol": "TCP", "port": 9090}
TO = f"{WEB}:80"
RELEASE = tuple(map(int, os.uname().release.split(".")[:2]))
HAS_FAST_PATH = RELEASE >= (5, 14)
BYTES = 40
"""Bytes sent one by one, and echoed."""


@pytest.fixture(scope="module")
def node() -> Iterator[InspectedNode]:
    with inspected_node("--flow-offload=services") as made:
        inactive = made.command("status", "-o", "json").json["flowOffload"]["inactive"]
        assert not inactive or not HAS_FAST_PATH, inactive
        made.create(
            service("web", WEB, node_port=30080),
            endpoint_slice("web", [ENDPOINT]) | {"ports": [PORT]},
        )
        yield made


@pytest.fixture(scope="module")
def echo(node: InspectedNode) -> Iterator[None]:
    """Run an echo server in the pod, which ends with its listener."""
    listener = node.cluster.network.namespace("b1").call(
        lambda: socket.create_server((ENDPOINT, PORT["port"]))
    )

    def serve() -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(accepted,), daemon=True).start()

    def answer(accepted: socket.socket) -> None:
        with accepted:
            while data := accepted.recv(1024):
                accepted.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    yield
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@contextmanager
def connection(node: InspectedNode, address: str = WEB, port: int = 80) -> Iterator[socket.socket]:
    """Connect from a pod of the node."""
    made = node.cluster.network.namespace("a2").call(
        lambda: socket.create_connection((address, port), timeout=30.0)
    )
    with closing(made):
        yield made


def exchange(made: socket.socket, number: int = BYTES) -> None:
    """Send bytes one by one, each after the reply to the one before."""
    for _ in range(number):
        made.sendall(b"x")
        assert made.recv(1) == b"x"


def top(node: InspectedNode, *words: str) -> Any:
    return node.command(
        "top", "--offloaded", "--once", "--interval", "0.1", "-o", "json", *words
    ).json


def test_a_long_lived_connection_is_shown_with_its_service(node: InspectedNode, echo: None) -> None:
    assert top(node)["flows"] == 0
    with connection(node) as made, connection(node, "172.30.0.11", 30080) as by_node_port:
        # The handshakes offload them.
        assert top(node)["flows"] == (2 if HAS_FAST_PATH else 0)
        exchange(made)
        exchange(by_node_port)
        if not HAS_FAST_PATH:
            assert top(node)["rows"] == []
            return
        (row,) = top(node)["rows"]
        assert (row["service"], row["flows"]) == ("shop/web:http", 2)
        # Each byte is a packet to and one fro, and pure acknowledgements may be saved.
        assert row["packets"] >= 4 * BYTES
        assert row["bytes"] > 40 * row["packets"]
        (by_endpoint,) = top(node, "shop/web", "--endpoints")["rows"]
        assert by_endpoint["endpoint"] == f"{ENDPOINT}:9090"
        assert top(node, "elsewhere")["rows"] == []
    # A FIN ends it. Linux 7 keeps the flows until they have been idle for two minutes.
    if RELEASE < (7, 0):
        node.until(lambda: top(node)["flows"] == 0, "the flows leave the fast path")


def test_traffic_of_the_sample_is_its_rate(node: InspectedNode, echo: None) -> None:
    # Linux 7.2 still has those of the test before.
    others = top(node)["flows"]
    with connection(node) as made:
        exchange(made)
        results: list[CommandResult] = []
        words = ("top", "--offloaded", "--iterations", "2", "--interval", "1", "-o", "json")
        sampling = threading.Thread(target=lambda: results.append(node.command(*words)))
        sampling.start()
        while sampling.is_alive():
            exchange(made, 1)
        samples = results[0].out.replace("}\n{", "}\0{").split("\0")
    assert len(samples) == 2
    last = json.loads(samples[1])
    assert (last["flows"], last["unmeasured"]) == (others + HAS_FAST_PATH, 0)
    assert (last["packetsPerSecond"] > 0) is HAS_FAST_PATH
    assert last["bytesPerSecond"] >= 40 * last["packetsPerSecond"]


def test_a_trace_says_that_the_connection_is_offloaded_and_when(
    node: InspectedNode, echo: None
) -> None:
    words = ("trace", "--from", CLIENT, "--to", TO)
    if not HAS_FAST_PATH:
        assert "connections are not offloaded: pyproxy status says why" in node.command(*words).out
        return
    (outcome,) = node.command(*words, "-o", "json").json["outcomes"]
    assert (outcome["offload"]["packets"], outcome["offload"]["reason"]) == (3, "")
    out = node.command(*words).out
    assert "the connection is offloaded after 3 packets of both directions together" in out
    assert "the flowtable does not have" not in out
    assert f"offload-services4 {{ {WEB} . tcp . 80 }}" in out
    own = node.command("trace", "--to", TO).out
    assert "the connection is not offloaded: this node sends its packets" in own
    with connection(node) as made:
        exchange(made)
        port = str(made.getsockname()[1])
        known = node.command(*words, "--source-port", port).out
    assert "flowtable: offloaded: passes routing and all hooks by" in known


def test_a_live_trace_names_the_connections_that_it_cannot_show(
    node: InspectedNode, echo: None
) -> None:
    words = ("trace", "--live", "--every-packet", "--to", TO, "--timeout", "0.5")
    with connection(node) as made:
        exchange(made)
        port = made.getsockname()[1]
        exchange(made)
        printed = node.run(*words)
    # On the slow path the last acknowledgement, which the kernel delays, may be traced.
    assert printed.status == 1 or not HAS_FAST_PATH
    assert ("offloaded" in printed.err) is HAS_FAST_PATH
    if not HAS_FAST_PATH:
        return
    assert "only their packets before the offload are shown" in printed.err
    (line,) = (each for each in printed.err.splitlines() if "offloaded before: tcp " in each)
    assert f"{CLIENT}:{port} -> {TO}, answered by" in line
