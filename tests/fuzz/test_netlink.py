"""Parsing of any netlink bytes raises only errors of pyproxy."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyproxy.errors import KernelError
from pyproxy.model.address import Family, Protocol
from pyproxy.netlink import attributes, element_counters, elements, flows, nftables, rules, tracing
from pyproxy.netlink.elements import Shape
from pyproxy.netlink.frames import read_messages
from pyproxy.netlink.kernel_errors import read_error
from pyproxy.netlink.monitor import Monitor
from pyproxy.netlink.nfnetlink import HEADER_SIZE, Message
from pyproxy.netlink.sockets import NetlinkSocket
from tests.examples import examples
from tests.fuzz.bytes import ROWS, bodies, corrupted, framed

# An element's message with the table's name alone: 12 bytes for the attribute.
TABLE_ALONE = b"\x0c\x00\x01\x00pyproxy\x00"
many = settings(max_examples=examples(100), deadline=None)
lists: st.SearchStrategy[list[memoryview]] = st.lists(bodies.map(memoryview), max_size=4)


def entry(family: Family, protocol: Protocol = Protocol.UDP) -> bytes:
    """A conntrack entry as the kernel dumps it."""
    size = family.bits // 8
    one, other = bytes(range(size)) + b"\1\2", bytes(range(size, 2 * size)) + b"\3\4"
    body = flows.tuple_attribute(1, protocol, one, other)
    body += flows.tuple_attribute(2, protocol, other, one)
    return framed(body + attributes.attribute(12, b"\0\0\0\7"), kind=0x100)


ENTRIES = [entry(family, protocol) for family in Family for protocol in Protocol]


@many
@given(bodies)
def test_attributes(data: bytes) -> None:
    for kind, value in attributes.attributes(data):
        assert 0 <= kind < 0x4000
        assert len(value) <= len(data)
        attributes.text(value)


READERS: list[Callable[[list[memoryview]], object]] = [
    nftables.read_table_names,
    lambda replies: nftables.read_chains(replies, "pyproxy"),
    nftables.read_rules,
    nftables.read_sets,
    element_counters.read_counted_sets,
    element_counters.read_packet_counts,
]


@many
@given(bodies)
def test_expressions(data: bytes) -> None:
    for each in rules.read_expressions(data):
        assert isinstance(each.name, str)
    rules.read_set_names(data)
    rules.read_incoming_interface(data)
    rules.read_bits_set(data)


@many
@given(bodies)
def test_traces(data: bytes) -> None:
    for event in tracing.read_events(framed(data, kind=0xA11)):
        assert event.kind in tracing.Kind


@many
@given(lists)
def test_objects(replies: list[memoryview]) -> None:
    for reader in READERS:
        reader(replies)


@many
@given(replies=lists)
@pytest.mark.parametrize("shape", Shape)
def test_elements(shape: Shape, replies: list[memoryview]) -> None:
    for key, value in elements.read_elements(replies, shape).items():
        assert isinstance(key, bytes)
        assert isinstance(value, bytes | elements.Tag)


@pytest.mark.parametrize("shape", Shape)
def test_intact_elements_are_parsed(shape: Shape) -> None:
    (write,) = elements.add_elements("pyproxy", "some", ROWS[shape], shape)
    back = elements.read_elements([memoryview(write.message.body)], shape)
    assert back.keys() == ROWS[shape].keys()


@many
@given(bodies, st.integers(-5, 400))
def test_the_offset_of_an_element(body: bytes, offset: int) -> None:
    index = elements.element_at(Message(0, 0, body), offset)
    assert index is None or index >= 0


@many
@given(st.one_of(corrupted(ENTRIES), bodies.map(framed), st.binary(max_size=80)))
@pytest.mark.parametrize("family", Family)
def test_conntrack_entries(family: Family, piece: bytes) -> None:
    try:
        found, _ = flows.read_flows(piece, family)
    except KernelError:
        return
    for flow in found:
        assert {len(flow.source), len(flow.destination), len(flow.reply_source)} <= {6, 18}
        assert isinstance(flow.zoned, bool)
        assert flow.handle


def error_message(code: int, *, words: str = "no", offset: int = 40) -> bytes:
    extended = attributes.string(1, words) + attributes.attribute(2, struct.pack("=I", offset))
    quoted = struct.pack("=IHHII", 16, 0xA0C, 0, 1, 0)
    body = struct.pack("=i", -code) + quoted + extended
    return struct.pack("=IHHII", 16 + len(body), 2, 0x300, 1, 0) + body


@many
@given(
    st.one_of(
        corrupted([error_message(2), error_message(22), error_message(0)]), st.binary(max_size=80)
    )
)
def test_frames_and_error_messages(data: bytes) -> None:
    end = 0
    for _, flags, _, _, message in read_messages(data):
        assert len(message) >= 16
        end += len(message)
        read_error(message, flags, 0)
    assert end <= len(data)


def test_an_intact_error_message_is_parsed() -> None:
    ((_, flags, _, _, message),) = read_messages(error_message(22))
    read = read_error(message, flags, 3)
    assert read is not None
    assert (read.index, read.errno, read.offset, read.words) == (3, 22, 40, "no")
    ((_, flags, _, _, message),) = read_messages(error_message(0))
    assert read_error(message, flags, 3) is None


class EndedError(Exception):
    """No more messages to receive."""


class Replayed(NetlinkSocket):
    """A socket whose replies a test sets."""

    def __init__(self, *pieces: bytes) -> None:
        self._purpose = "a test"
        self._pieces = list(pieces)

    def take_sequence(self, count: int = 1) -> int:
        return 1

    def receive_waiting(self) -> Iterator[bytes]:
        return iter(())

    def send(self, data: bytes) -> None:
        """Sends nothing."""

    def receive(self) -> bytes:
        if not self._pieces:
            raise EndedError
        return self._pieces.pop(0)


DONE = framed(b"", kind=3)


@many
@given(
    st.lists(
        st.one_of(
            corrupted([framed(b"") + DONE, DONE, error_message(4), error_message(2)]),
            bodies.map(framed),
        ),
        max_size=4,
    )
)
def test_dumps(pieces: list[bytes]) -> None:
    try:
        replies = Replayed(*pieces, DONE).request(lambda sequence: b"")
    except (KernelError, EndedError):
        return
    nftables.read_table_names([reply[HEADER_SIZE:] for reply in replies])


@many
@given(
    st.one_of(
        corrupted([framed(b"\1", kind=0xA0C), framed(b"", kind=0xA0F)]),
        st.builds(framed, bodies, bodies, kind=st.sampled_from([0xA00, 0xA0C, 0xA0F, 0xA12])),
    )
)
@example(framed(TABLE_ALONE, kind=0xA0C))
def test_notifications(data: bytes) -> None:
    monitor = Monitor.__new__(Monitor)
    monitor._table, monitor._own_port = "pyproxy", 7
    monitor._objects, monitor._sets = set(), set()
    foreign = monitor._read(data)
    assert foreign is None or foreign.objects
