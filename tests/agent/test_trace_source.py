"""The source address and interface of a packet to trace."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.agent.trace_source import packet_from
from pyproxy.errors import UsageError
from pyproxy.model.address import address_text
from pyproxy.model.destination import parse_destination
from tests.namespaces import empty_namespace


@pytest.fixture(scope="module")
def machine() -> Iterator[Namespace]:
    """A node with a way out, a bridge for pods and nothing else."""
    with empty_namespace("origin") as made:
        made.ip(
            [
                "link set lo up",
                "link add out0 type veth peer name out1",
                "link add cbr0 type bridge",
                "addr add 172.30.0.11/24 dev out0",
                "addr add 10.244.1.1/24 dev cbr0",
                "link set out0 up",
                "link set out1 up",
                "link set cbr0 up",
                "route add default via 172.30.0.1",
            ]
        )
        yield made


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("sender", "given", "source", "interface"),
    [
        ("node", "", "172.30.0.11", ""),
        ("outside", "", "203.0.113.1", "out0"),
        ("10.244.1.11", "", "10.244.1.11", "cbr0"),
        ("172.30.0.12", "", "172.30.0.12", "out0"),
        ("10.244.1.1", "", "10.244.1.1", ""),
        ("10.244.1.11", "veth7", "10.244.1.11", "veth7"),
    ],
)
def test_a_sender_is_found_by_the_routes(
    machine: Namespace, sender: str, given: str, source: str, interface: str
) -> None:
    target = parse_destination("10.96.0.1:80")
    packet = machine.call(lambda: packet_from(sender, target, given))
    assert address_text(packet.source) == source
    assert packet.interface == interface


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("sender", "to", "words"),
    [
        ("shop", "10.96.0.1:80", "write an address"),
        ("fd10::1", "10.96.0.1:80", "one is IPv4 and the other IPv6"),
        ("fd10::1", "[fd96::1]:80", "no route there"),
        ("node", "[fd96::1]:80", "no route to it"),
    ],
)
def test_a_sender_that_cannot_be_is_one_line(
    machine: Namespace, sender: str, to: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        machine.call(lambda: packet_from(sender, parse_destination(to)))
