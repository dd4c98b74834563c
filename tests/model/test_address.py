"""Parsing and formatting of addresses and networks."""

from __future__ import annotations

import pytest

from pyproxy.model.address import (
    Family,
    Port,
    address_text,
    backend,
    backend_text,
    family_of,
    parse_address,
    parse_network,
)


@pytest.mark.parametrize(
    ("text", "formatted", "family"),
    [
        ("10.96.0.1", "10.96.0.1", Family.IPV4),
        ("010.096.000.001", "10.96.0.1", Family.IPV4),
        ("fd00:0:0::1", "fd00::1", Family.IPV6),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.1", Family.IPV6),
    ],
)
def test_an_address_is_parsed_and_formatted(text: str, formatted: str, family: Family) -> None:
    address = parse_address(text)
    assert (address_text(address), family_of(address)) == (formatted, family)
    assert len(address) * 8 == family.bits


@pytest.mark.parametrize(
    "text", ["", "10.0.0", "10.0.0.256", "1.2.3.4.5", "fd00::g", "\u0661.2.3.4", "a"]
)
def test_an_invalid_address_raises_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="is not an IP address"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "formatted", "last"),
    [
        ("10.96.0.0/16", "10.96.0.0/16", "10.96.255.255"),
        (" 10.96.3.4/16 ", "10.96.0.0/16", "10.96.255.255"),
        ("0.0.0.0/0", "0.0.0.0/0", "255.255.255.255"),
        ("fd00::5/127", "fd00::4/127", "fd00::5"),
    ],
)
def test_a_network_is_parsed_without_spaces_and_host_bits(
    text: str, formatted: str, last: str
) -> None:
    network = parse_network(text)
    assert (str(network), address_text(network.last)) == (formatted, last)
    assert network.address in network
    assert network.last in network


@pytest.mark.parametrize(
    "text", ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/-1", "fd00::/129", "/8", "x/8"]
)
def test_an_invalid_network_raises_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        parse_network(text)


def test_a_network_contains_only_addresses_of_its_family() -> None:
    assert parse_address("::1") not in parse_network("0.0.0.0/0")


def test_a_backend_is_formatted_with_its_port() -> None:
    assert backend_text(backend(parse_address("10.0.0.1"), Port(80))) == "10.0.0.1:80"
    assert backend_text(backend(parse_address("fd00::1"), Port(80))) == "[fd00::1]:80"
