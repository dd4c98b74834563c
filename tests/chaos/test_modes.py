"""In every mode, removed rules are restored, and a restart without changes writes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.network import Network

from tests import modes
from tests.chaos.load import load
from tests.semantics.proxied import Proxied, endpoint_slice, proxied, service

pytestmark = pytest.mark.packets

RATE = 200
"""New connections a second from each of two clients."""

RESTARTS = 3
FLAGS = ("--cluster-cidr=10.244.0.0/16,fd10::/16", "--metrics-bind-address=0")
WEB = ("10.96.7.1:80", "[fd00:10:96::7:1]:80")
NODE_PORT = ("172.30.0.11:30777", "[fd30::11]:30777")
OBJECTS = [
    service(
        "web",
        "10.96.7.1",
        "fd00:10:96::7:1",
        ports=[{"port": 80, "nodePort": 30777}],
        type="NodePort",
    ),
    endpoint_slice("web", "a1", "b1"),
    endpoint_slice("web", "a1", "b1", family="IPv6"),
]


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


def lasting(node: Proxied) -> list[str]:
    """List the agent's rules without counters and clients' entries, in any order of chains."""
    without_counts = re.sub(r"\[\d+:\d+\]|^#.*", "", node.listing(), flags=re.MULTILINE)
    text = re.sub(r"-- \d+ \d+|expires \w+", "", without_counts)
    # nft lists chains by age, which depends on the transaction that each Service was in.
    return sorted(part.strip("\n}") for part in text.split("\n\n"))


def test_removed_rules_are_restored(mode: LabMode, network: Network, tmp_path: Path) -> None:
    with proxied(mode, network, tmp_path / "x", *FLAGS, objects=OBJECTS) as node:
        node.reaches("a2", WEB[0], "a1", "b1")
        before = lasting(node)
        modes.wipe(mode, network.namespace("na"))
        node.logs("repaired changes by")
        for who, places in (("a2", WEB), ("ext", NODE_PORT)):
            for place in places:
                node.reaches(who, place, "a1", "b1")
        assert lasting(node) == before


def test_no_connection_fails_through_restarts_and_nothing_is_written(
    mode: LabMode, network: Network, tmp_path: Path
) -> None:
    with ExitStack() as agents:

        def begin(name: str) -> Proxied:
            run = proxied(mode, network, tmp_path / name, *FLAGS, objects=OBJECTS)
            return agents.enter_context(run)

        node = begin("first")
        before = lasting(node)
        with (
            load(network.namespace("a2"), RATE, WEB) as inside,
            load(network.namespace("ext"), RATE, NODE_PORT) as outside,
        ):
            for number in range(RESTARTS):
                node.agent.stop()
                node = begin(f"again-{number}")
                assert lasting(node) == before
        assert [inside.failed, outside.failed] == [{}, {}]
        assert inside.answered
        assert outside.answered
