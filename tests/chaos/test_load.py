"""The load generator counts connections with a lost packet of their handshake."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from functools import partial

import pytest
from pyproxy_lab import echo
from pyproxy_lab.namespace import Namespace

from tests.waiting import until

from .load import load

pytestmark = pytest.mark.packets

CHAIN = """
add table ip lossy
add chain ip lossy input { type filter hook input priority 0; }
"""
ONCE = "limit rate 1/day burst 1 packets counter drop"
LOST = {
    8001: "tcp dport 8001 tcp flags & (syn | ack) == syn",
    8002: "tcp sport 8002 tcp flags & (syn | ack) == (syn | ack)",
    8003: "tcp dport 8003 tcp flags & (syn | ack | rst) == ack",
}
"""The packet that is lost once, by port."""


def has_lost(namespace: Namespace, packets: int) -> bool:
    listed = namespace.run(["nft", "list", "table", "ip", "lossy"]).stdout
    return listed.count("counter packets 1 ") == packets


def test_connections_with_a_lost_packet_are_counted(namespace: Namespace) -> None:
    ports = (8000, *LOST)
    command = [sys.executable, echo.__file__, f"{namespace.name},pod,{','.join(map(str, ports))}"]
    server = namespace.start(command, stdin=subprocess.PIPE, output=subprocess.PIPE)
    assert server.stdin is not None
    assert server.stdout is not None
    with server.stdin, contextlib.closing(server.stdout):
        assert server.stdout.readline().startswith(b"ready ")
        for lost in (LOST, {}):
            rules = [f"add rule ip lossy input {packet} {ONCE}" for packet in lost.values()]
            text = "\n".join((CHAIN, "flush table ip lossy", *rules))
            namespace.run(["nft", "-f", "-"], text=text)
            with load(namespace, 100, [f"127.0.0.1:{port}" for port in ports]) as result:
                until(partial(has_lost, namespace, len(lost)), "each port has lost a packet")
            assert (result.retransmitted, result.failed) == (len(lost), {})
            assert result.answered
    server.wait()
