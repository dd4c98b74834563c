"""Elements read by their keys: those of each run before its first gap, whatever their layout."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.netlink.element_lookup import look_up
from pyproxy.netlink.elements import Shape, Tag, Value, add_elements, delete_elements
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM
from tests.namespaces import empty_namespace

pytestmark = pytest.mark.kernel

TABLE = "lookup"
SETS = f"""
table inet {TABLE} {{
    map plain {{ type ipv4_addr . mark : ipv4_addr . inet_service; }}
    map counted {{ type ipv4_addr . mark : ipv4_addr . inet_service; counter; }}
    map verdicts {{ type ipv4_addr . mark : verdict; }}
    set keys {{ type ipv4_addr . mark; }}
    chain here {{ }}
}}
"""
DATA = bytes((10, 0, 0, 1, 31, 144, 0, 0))
VALUES: Mapping[str, Value] = {
    "plain": DATA,
    "counted": DATA,
    "verdicts": Tag("here", "shop/web:http"),
    "keys": b"",
}


@pytest.fixture(scope="module")
def netlink() -> Iterator[Nfnetlink]:
    with empty_namespace("lookup") as here:
        here.run(["nft", "-f", "-"], text=SETS)
        with closing(here.call(Nfnetlink)) as made:
            yield made


def key(number: int) -> bytes:
    return struct.pack(">I", number >> 8) + struct.pack("=I", number & 0xFF)


def write(netlink: Nfnetlink, name: str, rows: Mapping[bytes, Value]) -> None:
    messages = [each.message for each in add_elements(TABLE, name, rows, Shape.EXACT)]
    assert not netlink.transact(messages, SUBSYSTEM)


def clear(netlink: Nfnetlink, name: str, rows: Mapping[bytes, Value]) -> None:
    messages = [each.message for each in delete_elements(TABLE, name, rows, Shape.EXACT)]
    assert not netlink.transact(messages, SUBSYSTEM)


def before_gaps(rows: Mapping[bytes, Value], runs: Sequence[Sequence[bytes]]) -> dict[bytes, Value]:
    return {each: rows[each] for run in runs for each in takewhile(rows.__contains__, run)}


NUMBERS = st.sets(st.integers(0, 600), max_size=40)
RUNS = st.lists(st.lists(st.integers(0, 600), min_size=1, max_size=40), max_size=8)


@pytest.mark.parametrize("name", VALUES)
@settings(max_examples=25, deadline=None)
@given(NUMBERS, RUNS, st.data())
def test_each_run_is_read_to_its_first_gap(
    netlink: Nfnetlink, name: str, numbers: set[int], runs: list[list[int]], data: st.DataObject
) -> None:
    rows = {key(number): VALUES[name] for number in numbers}
    some = [data.draw(st.permutations(sorted(numbers)))] if numbers else []
    asked = [[key(number) for number in run] for run in [*runs, *some]]
    write(netlink, name, rows)
    try:
        assert look_up(netlink, TABLE, name, asked) == before_gaps(rows, asked)
    finally:
        if rows:
            clear(netlink, name, rows)


@pytest.mark.parametrize("buffer", [1 << 14, 1 << 16, 8 << 20])
def test_replies_never_exceed_the_receive_buffer(netlink: Nfnetlink, buffer: int) -> None:
    rows: dict[bytes, Value] = {key(number): DATA for number in range(5_000)}
    keys = list(rows)
    write(netlink, "plain", rows)
    # As without CAP_NET_ADMIN, which may exceed net.core.rmem_max.
    sock = netlink._socket._socket
    before = netlink.receive_buffer
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    try:
        # A run of a gap alone, which has a reply too, and runs that are longer than a message.
        gap = [key(1 << 20)]
        runs = [keys[:3], gap, keys[3:1_800], keys[1_800:], gap, *([each] for each in keys)]
        assert look_up(netlink, TABLE, "plain", runs) == rows
    finally:
        sock.setsockopt(socket.SOL_SOCKET, 33, before // 2)  # SO_RCVBUFFORCE
        clear(netlink, "plain", rows)


def test_a_set_that_does_not_exist_has_no_elements(netlink: Nfnetlink) -> None:
    assert look_up(netlink, TABLE, "none", [[key(1), key(2)]]) == {}
    assert look_up(netlink, "none", "plain", [[key(1)]]) == {}


def test_elements_longer_than_a_buffer_are_an_error_and_no_gap(netlink: Nfnetlink) -> None:
    # Userdata has at most 256 bytes, so that only names make a reply as long.
    long = "n" * 250
    rows: dict[bytes, Value] = {key(1): Tag("here", "c" * 120)}
    with empty_namespace("long") as here:
        here.run(["nft", "add", "table", "inet", long])
        text = f"map inet {long} {long} {{ type ipv4_addr . mark : verdict; }}"
        here.run(["nft", "add", *text.split()])
        here.run(["nft", "add", "chain", "inet", long, "here"])
        with closing(here.call(Nfnetlink)) as other:
            messages = [each.message for each in add_elements(long, long, rows, Shape.EXACT)]
            assert not other.transact(messages, SUBSYSTEM)
            with pytest.raises(Exception, match="EMSGSIZE"):
                look_up(other, long, long, [[key(1)]])
