"""Frontend keys and pod networks as rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyproxy.dataplane.nft.listing import elements
from pyproxy.dataplane.nft.rows import frontend_key, node_rows
from pyproxy.dataplane.nft.schema import PODS, by_name
from pyproxy.model.address import Address, Network, Protocol, parse_address, parse_network

KINDS = by_name([PODS])


def test_a_frontend_key_pads_each_field_to_four_bytes() -> None:
    key = frontend_key(parse_address("10.96.0.1"), Protocol.UDP, 53)
    assert key == b"\x0a\x60\x00\x01" + b"\x11\0\0\0" + b"\x00\x35\0\0"
    assert len(frontend_key(parse_address("fd00::1"), Protocol.SCTP, 65535)) == 24


def test_networks_that_overlap_or_touch_are_one_range() -> None:
    four = ("10.1.0.0/17", "10.1.128.0/17", "10.0.0.0/24", "10.1.2.0/24", "10.0.0.0/24")
    table = node_rows(map(parse_network, (*four, "fd00::/8")))
    assert set(elements("pods4", table["pods4"], KINDS)) == {
        "10.0.0.0-10.0.0.255",
        "10.1.0.0-10.1.255.255",
    }
    (six,) = elements("pods6", table["pods6"], KINDS)
    assert six == "fd00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    assert node_rows(()) == {}


NETWORKS = st.builds(
    lambda number, prefix: Network(
        Address((number >> (32 - prefix) << (32 - prefix)).to_bytes(4, "big")), prefix
    ),
    st.integers(0, 31).map(lambda number: number << 27),
    st.integers(0, 8),
)


@given(st.lists(NETWORKS, max_size=6), st.integers(0, (1 << 32) - 1))
def test_ranges_cover_the_networks_and_do_not_overlap(networks: list[Network], number: int) -> None:
    ranges = [(key[:4], key[4:]) for key in node_rows(networks).get("pods4", {})]
    address = Address(number.to_bytes(4, "big"))
    assert any(low <= address <= high for low, high in ranges) == any(
        address in network for network in networks
    )
    bounds = [int.from_bytes(bound, "big") for pair in sorted(ranges) for bound in pair]
    assert all(high + 1 < low for high, low in zip(bounds[1::2], bounds[2::2], strict=False))
