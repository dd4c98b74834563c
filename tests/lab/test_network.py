"""The lab's network, without any proxy: who reaches whom, under which address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest
from pyproxy_lab.leftovers import remove_abandoned
from pyproxy_lab.namespace import NETNS_FOLDER, LabError, ip
from pyproxy_lab.network import Network
from pyproxy_lab.owner import Owner
from pyproxy_lab.probe import Outcome, probe
from pyproxy_lab.relay import relaying
from pyproxy_lab.topology import API_ADDRESS, numbered_pod

from pyproxy.model.destination import parse_destination
from tests.waiting import RESPONSE_TIMEOUT

packets = pytest.mark.packets

SILENCE = 0.6
"""Seconds without a response after which a packet was dropped."""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


def outcome(
    network: Network, who: str, to: str, tries: int = 4, timeout: float = RESPONSE_TIMEOUT
) -> Outcome:
    ask = partial(probe, parse_destination(to), tries=tries, timeout=timeout)
    return network.namespace(who).call(ask)


@pytest.mark.parametrize(
    ("who", "to", "backend", "source"),
    [
        ("a1", "10.244.1.12:8080", "a2", "10.244.1.11"),
        ("a1", "10.244.2.11:8081", "b1", "10.244.1.11"),
        ("a1", "10.244.1.11:8080/udp", "a1", "10.244.1.11"),
        ("a2", "[fd10:2::12]:8080", "b2", "fd10:1::12"),
        ("b1", "[fd10:1::11]:8081/udp", "a1", "fd10:2::11"),
        ("na", "10.244.1.11:8080", "a1", "10.244.1.1"),
        ("na", "172.30.0.12:9090", "hb", "172.30.0.11"),
        ("ext", "172.30.0.11:9090/udp", "ha", "172.30.0.100"),
        ("ext", "[fd10:2::11]:8080", "b1", "fd30::100"),
        ("b2", "[fd30::11]:9090", "ha", "fd10:2::12"),
    ],
)
@packets
def test_reached(network: Network, who: str, to: str, backend: str, source: str) -> None:
    seen = outcome(network, who, to)
    assert seen == Outcome({backend: 4}, frozenset([source]))
    assert seen.sources <= network.addresses(who)


@pytest.mark.parametrize(
    ("who", "to"),
    [
        ("a1", "10.244.2.11:9"),
        ("a1", "10.244.2.11:9/udp"),
        ("ext", "[fd30::11]:80"),
        ("ext", "[fd30::11]:80/udp"),
    ],
)
@packets
def test_a_closed_port_refuses(network: Network, who: str, to: str) -> None:
    assert outcome(network, who, to) == Outcome(refused=3)


@pytest.mark.parametrize(
    ("who", "to"),
    [("a1", "10.96.0.1:80"), ("ext", "192.0.2.1:80"), ("na", "[fd00:10:96::1]:53/udp")],
)
@packets
def test_a_virtual_address_that_nobody_rewrites_is_silent(
    network: Network, who: str, to: str
) -> None:
    assert outcome(network, who, to, timeout=SILENCE) == Outcome(dropped=2)


@pytest.mark.parametrize("to", ["192.0.2.1:53/udp", "[2001:db8::1]:53/udp", "192.0.2.1:80"])
@packets
def test_a_sender_is_refused_or_dropped_by_rules_of_its_own_as_by_those_of_others(
    network: Network, to: str
) -> None:
    client = network.namespace("na")
    for verdict, seen, timeout in (
        ("reject", Outcome(refused=3), RESPONSE_TIMEOUT),
        ("drop", Outcome(dropped=2), SILENCE),
    ):
        rules = [
            "add table inet own",
            "add chain inet own out { type filter hook output priority 0; }",
            f"add rule inet own out th dport {{ 53, 80 }} {verdict}",
        ]
        client.run(["nft", "-f", "-"], text="\n".join(rules))
        assert outcome(network, "na", to, timeout=timeout) == seen
        client.run(["nft", "delete", "table", "inet", "own"])


@packets
def test_a_fixed_source_port_is_kept_from_try_to_try(network: Network) -> None:
    target = parse_destination("10.244.2.11:8080/udp")
    ask = partial(probe, target, tries=3, source_port=40000, timeout=RESPONSE_TIMEOUT)
    assert network.namespace("a1").call(ask).reached == {"b1": 3}


@packets
def test_a_pod_comes_and_goes(network: Network) -> None:
    network.add_pod(numbered_pod("late", 2, 77, ports=(5678,)))
    assert outcome(network, "a1", "10.244.2.77:5678").reached == {"late": 4}
    assert network.addresses("late") == {"10.244.2.77", "fd10:2::77"}
    network.remove_pod("late")
    assert not outcome(network, "a1", "10.244.2.77:5678", timeout=SILENCE).reached
    with pytest.raises(KeyError):
        network.addresses("late")


@packets
def test_nodes_reach_a_socket_that_this_process_has_opened_for_the_api_server(
    network: Network,
) -> None:
    with network.listen() as listener:
        port = listener.getsockname()[1]
        for site in ("na", "nb"):
            reach = partial(socket.create_connection, (API_ADDRESS, port), RESPONSE_TIMEOUT)
            network.namespace(site).call(reach).close()
    assert outcome(network, "na", f"{API_ADDRESS}:{port}").refused


@packets
def test_a_relay_leads_nodes_to_an_address_of_another_namespace(network: Network) -> None:
    pod = ("10.244.2.11", 8080)
    listener = network.listen()
    port = listener.getsockname()[1]
    with ExitStack() as stack:
        enter = partial(stack.enter_context, relaying(listener, pod))
        network.namespace("a1").call(enter)
        seen = outcome(network, "na", f"{API_ADDRESS}:{port}")
    assert seen == Outcome({"b1": 4}, frozenset(["10.244.1.11"]))
    assert outcome(network, "na", f"{API_ADDRESS}:{port}").refused


@packets
def test_a_relay_has_a_bounded_number_of_connections(network: Network) -> None:
    pod = ("10.244.2.11", 8080)
    listener = network.listen()
    port = listener.getsockname()[1]
    reach = partial(socket.create_connection, (API_ADDRESS, port), 60.0)
    with ExitStack() as stack:
        enter = partial(stack.enter_context, relaying(listener, pod))
        network.namespace("a1").call(enter)
        received = []
        for _ in range(65):
            connection = stack.enter_context(network.namespace("na").call(reach))
            received.append(connection.recv(100))
    assert all(each.startswith(b"b1 ") for each in received[:64])
    assert received[64] == b""


@packets
def test_two_networks_exist_at_the_same_time_and_leave_nothing() -> None:
    before = {path.name for path in NETNS_FOLDER.glob("*")}
    with Network(), Network() as other:
        assert outcome(other, "a1", "10.244.2.11:8080").reached == {"b1": 4}
        # Other processes may have networks of their own.
        own = NETNS_FOLDER.glob(f"lab{os.getpid()}-*")
        made = {path.name for path in own} - before
    assert len({name.rpartition("-")[0] for name in made}) == 2
    assert not made & {path.name for path in NETNS_FOLDER.glob("*")}


@packets
def test_a_call_raises_the_functions_error_and_a_failed_command_its_output(
    network: Network,
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        network.namespace("a1").call(fail)
    with pytest.raises(LabError, match="false"):
        network.namespace("a1").run(["false"])
    with pytest.raises(LabError, match="argument is required"):
        network.namespace("a1").ip(["link add nonsense"])


@packets
def test_a_lab_that_was_killed_is_removed_by_the_next() -> None:
    program = (
        "from pyproxy_lab.network import Network\n"
        "with Network() as n:\n"
        "    print('up', flush=True)\n"
        "    input()\n"
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"up\n"
    pattern = f"lab{killed.pid}-*"
    assert list(NETNS_FOLDER.glob(pattern))
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    with Network():
        assert not list(NETNS_FOLDER.glob(pattern))


@packets
def test_a_lab_is_abandoned_though_another_process_has_its_id() -> None:
    own = Owner.this_process()
    alive, gone = own.network(99), Owner(own.pid, own.start - 1).network(99)
    ip([f"netns add {name}-a1" for name in (alive, gone)])
    try:
        remove_abandoned()
        assert {path.name for path in NETNS_FOLDER.glob(f"lab{own.pid}-*-99-a1")} == {f"{alive}-a1"}
    finally:
        ip([f"netns del {alive}-a1"])


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (Outcome(), "nothing"),
        (Outcome({"b": 1, "a": 2}, frozenset(["x"])), "a 2x, b 1x, seen as x"),
        (Outcome(refused=3), "3 refused"),
        (Outcome({"a": 1}, frozenset(["x"]), dropped=2), "a 1x, 2 dropped, seen as x"),
    ],
)
def test_an_outcome_reads_well(seen: Outcome, text: str) -> None:
    assert str(seen) == text
