"""Where packets come from that somebody asks about."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from pyproxy.agent.origin import Target, packet_from, parse_target
from pyproxy.errors import UsageError
from pyproxy.lab.namespace import Namespace, ip
from pyproxy.model.address import Port, Protocol, address_text, parse_address

NUMBERS = itertools.count()


@pytest.mark.parametrize(
    ("text", "address", "port", "protocol"),
    [
        ("10.96.0.1:80", "10.96.0.1", 80, Protocol.TCP),
        ("10.96.0.1:80/", "10.96.0.1", 80, Protocol.TCP),
        ("10.96.0.1:80/tcp", "10.96.0.1", 80, Protocol.TCP),
        ("10.96.0.1:53/udp", "10.96.0.1", 53, Protocol.UDP),
        ("10.96.0.1:65535/sctp", "10.96.0.1", 65535, Protocol.SCTP),
        ("[fd96::1]:80/UDP", "fd96::1", 80, Protocol.UDP),
    ],
)
def test_a_target_is_read(text: str, address: str, port: int, protocol: Protocol) -> None:
    assert parse_target(text) == Target(parse_address(address), Port(port), protocol)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.96.0.1",
        "10.96.0.1:",
        "10.96.0.1:0",
        "10.96.0.1:65536",
        "10.96.0.1:-1",
        ":80",
        "10.96.0.1:80/icmp",
        "shop/web:80",
        "fd96::1",
        "[fd96::1]",
        "10.96.0.1:٣",
    ],
)
def test_what_is_no_target_is_one_line_about_it(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_target(text)
    assert str(raised.value).startswith(f"--to {text}: write ADDRESS:PORT")


@pytest.fixture(scope="module")
def machine() -> Iterator[Namespace]:
    """A node with a way out, a bridge for pods and nothing else."""
    made = Namespace(f"origin{os.getpid()}-{next(NUMBERS)}")
    ip([f"netns add {made.name}"])
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
    try:
        yield made
    finally:
        ip([f"netns del {made.name}"])


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
    target = parse_target("10.96.0.1:80")
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
        machine.call(lambda: packet_from(sender, parse_target(to)))
