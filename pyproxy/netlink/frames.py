"""The header of netlink messages: packed for a request, and read from a datagram.

Facts: include/uapi/linux/netlink.h. A message begins with its length, type, flags, sequence number
and port, and is padded to 4 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_DUMP_INTR = 0x010
NLM_F_CAPPED = 0x100
# The flags from 0x100 up depend on the message: CAPPED and ACK_TLVS are those of an
# acknowledgement, EXCL and CREATE those of a NEW request, DUMP those of a GET.
NLM_F_ACK_TLVS = 0x200
NLM_F_EXCL = 0x200
NLM_F_DUMP = 0x300
NLM_F_CREATE = 0x400

NLMSG_ERROR = 2
NLMSG_DONE = 3

# Netlink headers are in host byte order; nfnetlink's payload is mostly in network order.
HEADER = struct.Struct("=IHHII")
"""Length, type, flags, sequence number, port."""

_unpack_header = HEADER.unpack_from


def pack_message(kind: int, flags: int, sequence: int, *parts: bytes) -> bytes:
    """Pack a request whose body is `parts`; NLM_F_REQUEST is added to `flags`."""
    size = HEADER.size + sum(map(len, parts))
    # Port 0 is the kernel's own; it fills in the sender's.
    header = HEADER.pack(size, kind, NLM_F_REQUEST | flags, sequence, 0)
    return b"".join((header, *parts, b"\0" * (-size % 4)))


def read_messages(data: bytes) -> Iterator[tuple[int, int, int, int, memoryview]]:
    """Yield each message of a datagram: type, flags, sequence number, port, and the whole message.

    The message includes its header. A message whose length is impossible ends the iteration.
    """
    view = memoryview(data)
    # Conntrack dumps have a message for each entry, so names are local here.
    unpack, offset, size = _unpack_header, 0, len(view)
    # The kernel packs many messages of a dump into one datagram, but never splits a message.
    while offset + 16 <= size:
        length, kind, flags, sequence, port = unpack(view, offset)
        end = offset + length
        if length < 16 or end > size:
            return
        yield kind, flags, sequence, port, view[offset:end]
        offset = (end + 3) & ~3
