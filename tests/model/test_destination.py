"""The text format of destinations."""

from __future__ import annotations

import pytest

from pyproxy.model.address import Port, Protocol, parse_address
from pyproxy.model.destination import Destination, parse_destination


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
def test_a_destination_is_parsed_and_formatted(
    text: str, address: str, port: int, protocol: Protocol
) -> None:
    read = parse_destination(text)
    assert read == Destination(parse_address(address), Port(port), protocol)
    assert parse_destination(str(read)) == read


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
        "shop:80",
        "fd96::1",
        "fd96::1:80",
        "[fd96::1]",
        "[10.96.0.1]:80",
        "10.96.0.1:٣",
    ],
)
def test_an_invalid_destination_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="is not a destination: write ADDRESS:PORT") as raised:
        parse_destination(text)
    assert str(raised.value).startswith(repr(text))
