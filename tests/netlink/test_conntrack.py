from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyproxy.errors import PermissionKernelError
from pyproxy.model.address import Family, Protocol
from pyproxy.netlink.attributes import attribute, attributes, nested
from pyproxy.netlink.conntrack import Conntrack
from pyproxy.netlink.flows import (
    CTA_TUPLE_ORIG,
    CTA_TUPLE_REPLY,
    CTA_TUPLE_ZONE,
    IPS_OFFLOAD,
    Flow,
    Usage,
    read_flows,
    tuple_attribute,
)
from pyproxy.netlink.frames import pack_message
from pyproxy.netlink.nfnetlink import pack_family
from tests.netlink.conntrack_entries import Entry, empty_table, insert, offloaded, place

CLIENT = place("172.30.0.100", 40000)
DNS = place("10.96.0.10", 53)
POD = place("10.244.1.5", 5353)
OTHER = place("10.96.0.11", 53)
CLIENT6 = place("fd30::100", 40000)
DNS6 = place("fd00:10:96::a", 53)
POD6 = place("fd10:1::5", 5353)
ENTRY, ENTRY6 = Entry(CLIENT, DNS, POD), Entry(CLIENT6, DNS6, POD6)


def message(body: bytes, kind: int = 0x100) -> bytes:
    return pack_message(kind, 2, 1, pack_family(socket.AF_INET), body)


def tuples(protocol: Protocol = Protocol.UDP) -> tuple[bytes, bytes]:
    return (
        tuple_attribute(CTA_TUPLE_ORIG, protocol, CLIENT, DNS),
        tuple_attribute(CTA_TUPLE_REPLY, protocol, POD, CLIENT),
    )


def test_a_message_in_the_usual_layout_is_read() -> None:
    (flow,), done = read_flows(message(b"".join(tuples())), Family.IPV4)
    assert not done
    assert (flow.source, flow.destination, flow.reply_source) == (CLIENT, DNS, POD)
    assert (flow.family, flow.protocol) == (Family.IPV4, Protocol.UDP)
    assert flow.translated
    assert not flow.zoned


def test_a_message_with_a_zone_in_its_tuple_is_read() -> None:
    original, reply = tuples()
    zone = attribute(CTA_TUPLE_ZONE, struct.pack(">H", 7))
    (_, value), *_ = attributes(original)
    ((flow,), _) = read_flows(
        message(nested(CTA_TUPLE_ORIG, bytes(value), zone) + reply), Family.IPV4
    )
    assert (flow.source, flow.destination, flow.reply_source) == (CLIENT, DNS, POD)
    assert flow.zoned
    assert zone in flow.handle


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(tuples()[0], id="no reply tuple"),
        pytest.param(nested(CTA_TUPLE_ORIG) + tuples()[1], id="an empty tuple"),
        pytest.param(
            b"".join(tuples()).replace(b"\x05\0\1\0\x11", b"\x05\0\1\0\x01"), id="not our protocol"
        ),
    ],
)
def test_a_message_without_ports_of_a_known_protocol_is_skipped(body: bytes) -> None:
    assert read_flows(message(body), Family.IPV4) == ([], False)


def test_an_error_in_a_dump_is_translated() -> None:
    error = struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -errno.EPERM) + bytes(16)
    with pytest.raises(PermissionKernelError, match="EPERM"):
        read_flows(error, Family.IPV4)


def test_a_flow_without_a_tuple_cannot_be_deleted() -> None:
    nameless = Flow(Protocol.UDP, CLIENT, DNS, POD, message(b""))
    with pytest.raises(ValueError, match="original tuple"):
        _ = nameless.handle


RECORDED = Path(__file__).with_name("recorded") / "offloaded-flows.txt"
ON_FAST_PATH = {
    4: (place("10.96.0.1", 80), place("10.2.0.2", 8080), 2448),
    6: (place("fd96::1", 80), place("fd02::2", 8080), 3368),
}


@pytest.mark.parametrize("line", RECORDED.read_text().splitlines(), ids=lambda line: line[:6])
def test_entries_of_a_flowtable_that_kernels_sent(line: str) -> None:
    _, number, data = line.split()
    ((flow,), done) = read_flows(bytes.fromhex(data), Family(int(number)))
    destination, endpoint, size = ON_FAST_PATH[int(number)]
    assert not done
    assert flow.offloaded
    assert flow.translated
    assert (flow.protocol, flow.destination) == (Protocol.TCP, destination)
    assert flow.reply_source == endpoint
    # 20 bytes to and fro, and the handshake before them.
    assert flow.usage == Usage(flow.usage.id, 46, size)
    assert flow.usage.id > 0


@pytest.mark.parametrize(
    ("status", "expected"),
    [(IPS_OFFLOAD, True), (IPS_OFFLOAD | 1 << 15, True), (0, False), (1 << 13 | 1 << 15, False)],
)
def test_a_flow_is_offloaded_while_its_status_says_so(status: int, expected: bool) -> None:
    assert offloaded(ENTRY, status=status).offloaded is expected


def test_counters_are_those_of_both_directions() -> None:
    assert offloaded(ENTRY, 7, 40, 2**40).usage == Usage(7, 60, 2**40 + 2**39)


def test_an_entry_without_counters_has_none() -> None:
    ((flow,), _) = read_flows(message(b"".join(tuples())), Family.IPV4)
    assert flow.usage == Usage(0, 0, 0)
    assert not flow.offloaded


@pytest.fixture
def table() -> Iterator[Conntrack]:
    with empty_table() as opened:
        yield opened


def read(
    table: Conntrack,
    family: Family = Family.IPV4,
    protocol: Protocol = Protocol.UDP,
    destination: bytes = b"",
) -> list[Flow]:
    return [flow for piece in table.flows(family, protocol, destination) for flow in piece]


def many(number: int) -> list[Entry]:
    return [Entry(place("172.30.0.100", port), DNS) for port in range(1, number + 1)]


@pytest.mark.kernel
class TestKernel:
    @pytest.mark.parametrize("protocol", [Protocol.UDP, Protocol.SCTP])
    @pytest.mark.parametrize(("family", "entry"), [(Family.IPV4, ENTRY), (Family.IPV6, ENTRY6)])
    def test_flows_are_read_by_family_and_protocol(
        self, table: Conntrack, family: Family, entry: Entry, protocol: Protocol
    ) -> None:
        insert(
            Entry(one.client, one.to, one.by, number)
            for one in (ENTRY, ENTRY6)
            for number in Protocol
        )
        (flow,) = read(table, family, protocol)
        assert (flow.source, flow.destination) == (entry.client, entry.to)
        assert (flow.reply_source, flow.protocol) == (entry.by, protocol)
        assert table.selective

    @pytest.mark.parametrize("texts", [("10.96.0.10", "10.96.0.11"), ("fd00::a", "fd00::b")])
    def test_flows_are_read_by_destination(self, table: Conntrack, texts: tuple[str, str]) -> None:
        one, other = texts
        client, family = (CLIENT, Family.IPV4) if "." in one else (CLIENT6, Family.IPV6)
        dns, web, far = place(one, 53), place(one, 80), place(other, 53)
        insert(Entry(client, goal) for goal in (dns, web, far))

        def found(destination: bytes) -> set[bytes]:
            return {flow.destination for flow in read(table, family, destination=destination)}

        assert found(dns) == {dns}
        assert found(far) == {far}
        assert found(dns[-2:]) == {dns, far}
        assert found(place(one, 81)) == set()
        assert found(b"") == {dns, web, far}
        assert table.selective

    @pytest.mark.parametrize("family", Family)
    def test_entries_without_the_status_are_not_offloaded(
        self, table: Conntrack, family: Family
    ) -> None:
        insert([ENTRY, ENTRY6, *many(1000)])
        assert list(table.offloaded(family)) == []

    def test_a_reader_that_stops_early_leaves_no_replies_behind(self, table: Conntrack) -> None:
        insert(many(2000))
        assert len(next(table.flows(Family.IPV4, Protocol.UDP))) < 2000
        assert len(read(table)) == 2000

    def test_only_the_given_entry_is_deleted(self, table: Conntrack) -> None:
        insert([ENTRY, ENTRY6, Entry(CLIENT, OTHER)])
        (doomed,) = read(table, destination=DNS)
        assert table.delete([doomed]).deleted == 1
        (left,) = read(table)
        assert left.destination == OTHER
        assert len(read(table, Family.IPV6)) == 1

    def test_an_entry_that_is_gone_already_is_no_error(self, table: Conntrack) -> None:
        insert([ENTRY, ENTRY6])
        flows = read(table) + read(table, Family.IPV6)
        table.delete(flows[:1])
        outcome = table.delete(flows)
        assert (outcome.deleted, outcome.failed) == (1, ())

    @pytest.mark.parametrize("family", Family)
    def test_an_expired_entry_is_gone_and_no_other(self, table: Conntrack, family: Family) -> None:
        insert([ENTRY, ENTRY6])
        (flow,) = read(table, family)
        assert table.expire(flow)
        assert read(table, family) == []
        assert len(read(table, Family.IPV6 if family is Family.IPV4 else Family.IPV4)) == 1
        # An entry that is gone already cannot expire.
        assert not table.expire(flow)

    def test_more_entries_than_one_request_holds_are_deleted(self, table: Conntrack) -> None:
        insert(many(1000))
        outcome = table.delete(read(table))
        assert (outcome.deleted, outcome.failed) == (1000, ())
        assert read(table) == []

    def test_a_failed_deletion_does_not_affect_others(self, table: Conntrack) -> None:
        insert([ENTRY, Entry(CLIENT, OTHER)])
        good, other = read(table)
        broken = Flow(
            other.protocol,
            other.source,
            other.destination,
            other.reply_source,
            message(nested(CTA_TUPLE_ORIG)),
        )
        outcome = table.delete([broken, good])
        assert outcome.deleted == 1
        ((flow, error),) = outcome.failed
        assert (flow, error.errno) == (broken, errno.EINVAL)

    def test_entries_of_different_zones_are_distinct(self, table: Conntrack) -> None:
        insert([Entry(CLIENT, DNS), Entry(CLIENT, DNS, zone=7)])
        both = read(table)
        assert sorted(flow.zoned for flow in both) == [False, True]
        table.delete([flow for flow in both if flow.zoned])
        (left,) = read(table)
        assert not left.zoned
