"""A netlink socket's requests: dumps that fail midway, and sequence numbers."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import closing

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.errors import KernelError, StaleStateError, TransientKernelError
from pyproxy.model.address import Family, parse_address
from pyproxy.netlink import rtnetlink
from pyproxy.netlink.attributes import string
from pyproxy.netlink.flows import read_flows
from pyproxy.netlink.frames import NLM_F_ACK_TLVS, NLM_F_DUMP_INTR, NLMSG_DONE, pack_message
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM, delete_table, get_tables
from pyproxy.netlink.requests import Requests
from pyproxy.netlink.sockets import NETLINK_ROUTE, NetlinkSocket
from tests.namespaces import empty_namespace

LAST = (1 << 32) - 1


def done(sequence: int, code: int = 0, words: str = "") -> bytes:
    flags = NLM_F_ACK_TLVS if words else 0
    extended = string(1, words) if words else b""
    return pack_message(NLMSG_DONE, flags, sequence, struct.pack("=i", -code), extended)


class Replayed(NetlinkSocket):
    """A socket whose reply to each request a test sets."""

    def __init__(self, *replies: bytes) -> None:
        self._purpose = "a test"
        self._sequence = 0
        self._replies = list(replies)

    def receive_waiting(self) -> Iterator[bytes]:
        return iter(())

    def send(self, data: bytes) -> None:
        """Sends nothing."""

    def receive(self) -> bytes:
        return self._replies.pop(0)


def part(sequence: int) -> bytes:
    return pack_message(0xA0C, 0, sequence, b"an element")


def test_a_dump_that_fails_midway_is_an_error_and_not_a_part_of_the_state() -> None:
    sock = Replayed(part(1), done(1, errno.ENOENT, "the set is gone"))
    with pytest.raises(StaleStateError, match="ENOENT: the set is gone"):
        sock.request(lambda sequence: b"")


def test_a_dump_that_was_interrupted_is_repeated() -> None:
    sock = Replayed(part(1) + done(1, errno.EINTR), part(2) + done(2))
    assert len(sock.request(lambda sequence: b"")) == 1
    always = Replayed(*(done(number, errno.EINTR) for number in range(1, 100)))
    with pytest.raises(TransientKernelError):
        always.request(lambda sequence: b"")


def test_of_a_dump_that_may_be_interrupted_some_replies_are_kept() -> None:
    marked = pack_message(0xA0C, NLM_F_DUMP_INTR, 1, b"another")
    sock = Replayed(part(1) + marked + done(1), part(2) + done(2, errno.EINTR), part(3) + done(3))

    def kept(word: bytes) -> int:
        replies = sock.request(
            lambda sequence: b"", consistent=False, keep=lambda reply: bytes(reply[16:]) == word
        )
        return len(replies)

    # One without a reply that is kept is no empty one, which would be repeated.
    assert kept(b"none of these") == 0
    # A dump that an error ends is not complete.
    assert kept(b"an element") == 1


def test_a_dump_of_flows_that_fails_midway_is_an_error() -> None:
    with pytest.raises(KernelError, match="ENOMEM"):
        read_flows(done(1, errno.ENOMEM), Family.IPV4)
    assert read_flows(done(1), Family.IPV4) == ([], True)


@pytest.fixture
def here() -> Iterator[Namespace]:
    with empty_namespace("seq") as made:
        made.ip(["link set lo up"])
        yield made


@pytest.mark.kernel
def test_sequence_numbers_begin_again_after_the_last(here: Namespace) -> None:
    address = parse_address("10.9.0.1")
    with closing(here.call(lambda: Requests(NETLINK_ROUTE))) as kernel:
        kernel._socket._sequence = LAST - 2
        device = rtnetlink.find_device(kernel, "lo")
        requests = [rtnetlink.delete_address(device, address)] * 3
        assert [each.index for each in kernel.send(requests)] == [0, 1, 2]
        assert kernel._socket._sequence == 3
        assert rtnetlink.find_device(kernel, "lo") == device


@pytest.mark.kernel
def test_a_batch_at_the_last_numbers_reports_its_errors(here: Namespace) -> None:
    with closing(here.call(Nfnetlink)) as netlink:
        for before in range(LAST - 3, LAST + 1):
            netlink._socket._sequence = before
            (error,) = netlink.transact([delete_table("none")], SUBSYSTEM)
            assert (error.index, error.errno) == (0, errno.ENOENT)
            assert list(netlink.dump(get_tables())) == []
