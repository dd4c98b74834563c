"""Elements read by their keys: the time is linear in their number, unlike that of a dump.

Facts: net/netfilter/nf_tables_api.c. A dump has parts of 32 KiB, and the kernel finds the beginning
of each by walking the set from its start. A request that is no dump may name many keys. The kernel
looks each up, sends a message for it, and stops at the first that does not exist, with ENOENT.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from pyproxy.netlink import elements
from pyproxy.netlink.attributes import attributes
from pyproxy.netlink.elements import ELEM_DATA, ELEM_KEY, LIST_ELEMENTS, Shape, Value, element_value
from pyproxy.netlink.frames import NLMSG_ERROR, read_messages
from pyproxy.netlink.kernel_errors import error_code, kernel_error
from pyproxy.netlink.nfnetlink import HEADER_SIZE, Message, Nfnetlink
from pyproxy.netlink.nftables import message_type
from pyproxy.netlink.small_replies import STRIDE, SmallReplies

_NEWSETELEM = message_type(12)
_REPLY_SPACE = 2_048
"""Bytes of the receive buffer for each reply: the kernel counts 768 to 1,280 for such a message."""

_START = struct.Struct("=IHH")
"""An entry's first bytes: length, type and flags of the message."""

_ERRORS = struct.Struct(f"=IHHQi{STRIDE - 20}x")
"""An entry as an error: length, type, flags, sequence and port, and the negative errno."""


def look_up(
    netlink: Nfnetlink, table: str, set_name: str, runs: Iterable[Sequence[bytes]]
) -> dict[bytes, Value]:
    """Read elements of a set whose keys are exact: of each run, those before the first gap.

    The keys have one length. A set that does not exist has no elements. Raises KernelError, such
    as ENOBUFS.
    """
    found: dict[bytes, Value] = {}
    replies = SmallReplies(netlink.fileno())
    most = max(1, netlink.receive_buffer // _REPLY_SPACE - 1)
    for requests in _sends(table, set_name, runs, most):
        netlink.send_requests(requests)
        # The kernel executes all of a send before it returns, so that every reply waits now.
        for datagrams in replies.waiting():
            _read(datagrams, found)
    return found


def _sends(
    table: str, set_name: str, runs: Iterable[Sequence[bytes]], most: int
) -> Iterator[list[Message]]:
    """Yield the requests of each send: their replies must fit in the receive buffer together."""
    requests: list[Message] = []
    expected = 0
    # An unprivileged process may have a buffer of 200 KiB.
    several = min(most, elements.KEYS_LIMIT)
    for run in runs:
        for begin in range(0, len(run), several):
            keys = run[begin : begin + several]
            if requests and expected + len(keys) + 1 > most:
                yield requests
                requests, expected = [], 0
            requests.append(elements.get_some_elements(table, set_name, keys))
            expected += len(keys) + 1
    if requests:
        yield requests


def _read(datagrams: memoryview, found: dict[bytes, Value]) -> None:
    count = len(datagrams) // STRIDE
    layout = _layout(datagrams)
    some: dict[bytes, Value] = {}
    if layout is not None:
        form, start, names, between = layout
        some = {
            key: value
            for head, before, key, middle, value in form.iter_unpack(datagrams)
            if head == start and before == names and middle == between
        }
    missing = 0
    if len(some) < count:
        missing = sum(
            kind == NLMSG_ERROR and code == -errno.ENOENT
            for _, kind, _, _, code in _ERRORS.iter_unpack(datagrams)
        )
    # Other layouts, such as of elements with counters, and other errors.
    if len(some) + missing < count:
        for number in range(count):
            some.update(_read_one(datagrams[number * STRIDE : (number + 1) * STRIDE]))
    found.update(some)


def _read_one(entry: memoryview) -> dict[bytes, Value]:
    for kind, _, _, _, message in read_messages(bytes(entry)):
        if kind == NLMSG_ERROR:
            code = error_code(message)
            if code not in (0, errno.ENOENT):
                raise kernel_error(code, "requesting elements from netfilter")
        elif kind == _NEWSETELEM:
            return elements.read_elements([message[HEADER_SIZE:]], Shape.EXACT)
        return {}
    raise kernel_error(errno.EMSGSIZE, "an element is longer than a buffer")


def _layout(datagrams: memoryview) -> tuple[struct.Struct, bytes, bytes, bytes] | None:
    """Return the layout of a plain element's reply, and its bytes but for key and value.

    The first reply decides, and the second if the first is an error.
    """
    for number in range(min(2, len(datagrams) // STRIDE)):
        entry = datagrams[number * STRIDE : (number + 1) * STRIDE]
        length, kind, _ = _START.unpack_from(entry)
        if kind != _NEWSETELEM or length > STRIDE:
            continue
        place = _places(entry[HEADER_SIZE:length])
        if place is None:
            return None
        key_at, key_size, value_at, value_size = place
        if value_at + value_size != length:
            return None
        form = _form(key_at, key_size, value_at, value_size)
        head, before, _, between, _ = form.unpack_from(entry)
        return form, head, before, between
    return None


def _places(body: memoryview) -> tuple[int, int, int, int] | None:
    """Return where key and value of an element begin in its reply, each with its size."""
    offset = HEADER_SIZE
    for kind, items in attributes(body):
        if kind == LIST_ELEMENTS:
            ((_, element),) = attributes(items)
            fields = list(attributes(element))
            if [each for each, _ in fields] != [ELEM_KEY, ELEM_DATA]:
                return None
            key, value = (element_value(data) for _, data in fields)
            if not value or len(key) % 4 or len(value) % 4:
                return None
            # Four headers precede the key: of the list, the element, the key and its value.
            key_at = offset + 16
            return key_at, len(key), key_at + len(key) + 8, len(value)
        offset += 4 + ((len(items) + 3) & ~3)
    return None


@cache
def _form(key_at: int, key_size: int, value_at: int, value_size: int) -> struct.Struct:
    # Sequence, port and nfgenmsg are skipped: it has the low bits of nf_tables' generation.
    before = key_at - HEADER_SIZE
    behind = STRIDE - value_at - value_size
    skipped = HEADER_SIZE - _START.size
    return struct.Struct(
        f"={_START.size}s{skipped}x{before}s{key_size}s{value_at - key_at - key_size}s"
        f"{value_size}s{behind}x"
    )
