"""Replacing the node's proxy under load: no connection fails, and established ones survive."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
from pyproxy_lab.modes import NFTABLES
from pyproxy_lab.network import Network

from pyproxy.model.destination import parse_destination
from tests.chaos.load import LoadResult, load
from tests.semantics.proxied import balanced, endpoint_slice, proxied, service
from tests.waiting import PATIENCE

from .scenes import MODES, leave, make_foreign, state, without_firewall

pytestmark = pytest.mark.packets

RATE = 300
"""New connections a second from each of two clients."""

WEB = ("10.96.77.1:80", "[fd00:10:96::7:1]:80")
NODE_PORT = ("172.30.0.11:30777", "[fd30::11]:30777")
TAKEOVER = ("--takeover", "--cluster-cidr=10.244.0.0/16,fd10::/16", "--metrics-bind-address=0")
OBJECTS = [
    service(
        "web",
        "10.96.77.1",
        "fd00:10:96::7:1",
        ports=[{"port": 80, "nodePort": 30777}],
        type="LoadBalancer",
        sessionAffinity="ClientIP",
        externalTrafficPolicy="Local",
        healthCheckNodePort=30999,
        loadBalancerSourceRanges=["203.0.113.0/24", "2001:db8:1::/64"],
        status=balanced("198.51.100.77", "2001:db8::77"),
    ),
    endpoint_slice("web", "a1", "b1"),
    endpoint_slice("web", "a1", "b1", family="IPv6"),
    service("dns", "10.96.77.2", "fd00:10:96::7:2", ports=[{"port": 53, "protocol": "UDP"}]),
    endpoint_slice("dns", "a1", "b1", "b2", ports=[{"port": 8080, "protocol": "UDP"}]),
    service("empty", "10.96.77.3", "fd00:10:96::7:3"),
]


@contextmanager
def loaded(network: Network) -> Iterator[list[LoadResult]]:
    """Load from a pod to cluster IPs and from outside to node ports, until the block ends."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(load(network.namespace(who), RATE, places))
            for who, places in (("a2", WEB), ("ext", NODE_PORT))
        ]


def hold(network: Network, stack: ExitStack) -> list[tuple[socket.socket, str]]:
    """Open connections and keep them, each with the name of its pod."""
    held = []
    for who, places in (("a2", WEB), ("ext", (*NODE_PORT, *WEB)), ("na", WEB)):
        for place in places:
            connect = partial(
                socket.create_connection, parse_destination(place).socket_address, PATIENCE
            )
            connection = stack.enter_context(network.namespace(who).call(connect))
            held.append((connection, connection.recv(256).decode()))
    return held


def assert_alive(held: list[tuple[socket.socket, str]]) -> None:
    for connection, answer in held:
        connection.sendall(b"?")
        assert connection.recv(256).decode() == answer


def assert_all_answered(came: list[LoadResult]) -> None:
    for each in came:
        assert not each.failed
        assert not each.retransmitted
        assert each.answered


@pytest.mark.parametrize("left", MODES)
def test_no_connection_fails_while_pyproxy_takes_over(
    network: Network, tmp_path: Path, left: str
) -> None:
    here = network.namespace("na")
    make_foreign(here)
    before = without_firewall(state(here))
    # The second takeover is from the table that the first one made, whatever was left before.
    for turn in ("first", "second") if left == "nftables" else ("first",):
        leave(here, left)
        assert without_firewall(state(here)) != before
        with ExitStack() as stack:
            held = hold(network, stack)
            with loaded(network) as came:
                run = proxied(NFTABLES, network, tmp_path / turn, *TAKEOVER, objects=OBJECTS)
                agent = stack.enter_context(run)
                agent.logs("removed leftovers of kube-proxy")
                assert without_firewall(state(here)) == before
                assert_alive(held)
                agent.reaches("a2", "10.96.77.2:53/udp", "a1", "b1", "b2")
                agent.is_refused("a2", "10.96.77.3:80")
                agent.is_dropped("ext", "198.51.100.77:80")
            assert_all_answered(came)
            assert_alive(held)
    if left != "nftables":
        program = left.replace("iptables", "ip6tables")
        assert any("KUBE-FIREWALL" in line for line in state(here)[program])


@pytest.mark.parametrize("left", MODES)
def test_no_connection_fails_while_kube_proxy_comes_back(
    network: Network, tmp_path: Path, left: str
) -> None:
    here = network.namespace("na")
    make_foreign(here)
    cleanup = [sys.executable, "-m", "pyproxy", "cleanup"]
    with (
        proxied(NFTABLES, network, tmp_path / "x", *TAKEOVER, objects=OBJECTS) as agent,
        ExitStack() as stack,
    ):
        agent.logs("no leftovers of kube-proxy")
        held = hold(network, stack)
        with loaded(network) as came:
            leave(here, left)
            back = state(here)
            agent.agent.stop()
            for _ in range(2):
                here.run(cleanup)
                assert "table inet pyproxy" not in here.run(["nft", "list", "tables"]).stdout
            assert_alive(held)
            assert state(here) == back
        assert_all_answered(came)
        assert_alive(held)


@pytest.mark.parametrize("left", MODES)
def test_with_both_rulesets_present_each_serves_the_services_that_only_it_has(
    network: Network, tmp_path: Path, left: str
) -> None:
    """Between the first commit and the removal; kube-proxy's rules may be out of date, too."""
    leave(network.namespace("na"), left)
    late = [*OBJECTS, endpoint_slice("empty", "b2"), endpoint_slice("empty", "b2", family="IPv6")]
    flags = [flag for flag in TAKEOVER if flag != "--takeover"]
    with proxied(NFTABLES, network, tmp_path / "x", *flags, objects=late) as agent:
        for place in ("10.96.77.3:80", "[fd00:10:96::7:3]:80"):
            agent.reaches("a2", place, "b2")
            agent.reaches("ext", place, "b2")
        # Masqueraded once or not at all, whichever ruleset sees the connection first.
        agent.reaches("a2", "10.96.255.1:80", "b1", source="10.244.1.12")
        agent.reaches("ext", "10.96.255.1:80", "b1", source="172.30.0.11")
        agent.reaches("ext", NODE_PORT[0], "a1", source="172.30.0.100")
        agent.reaches("ext", NODE_PORT[1], "a1", source="fd30::100")
        agent.is_dropped("ext", "198.51.100.77:80")
        agent.is_refused("a2", "10.96.77.1:81")


@pytest.mark.parametrize("left", MODES)
def test_endpoints_that_only_kube_proxys_stale_rules_have_are_not_used(
    network: Network, tmp_path: Path, left: str
) -> None:
    leave(network.namespace("na"), left)
    ends = [endpoint_slice("web", "b2"), endpoint_slice("web", "b2", family="IPv6")]
    with proxied(NFTABLES, network, tmp_path / "x", *TAKEOVER, objects=[*OBJECTS, *ends]) as agent:
        agent.logs("removed leftovers of kube-proxy")
        for place in WEB:
            agent.reaches("a2", place, "b2")
            agent.reaches("na", place, "b2")
