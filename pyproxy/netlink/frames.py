"""Netlink's framing: the header of every message, and the walk over those of a datagram.

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
NLM_F_ACK_TLVS = 0x200
NLM_F_EXCL = 0x200
NLM_F_DUMP = 0x300
NLM_F_CREATE = 0x400

NLMSG_ERROR = 2
NLMSG_DONE = 3

HEADER = struct.Struct("=IHHII")
"""Length, type, flags, sequence number, port."""


def frames(data: bytes) -> Iterator[tuple[int, int, int, memoryview]]:
    """Walk over netlink messages as (type, flags, sequence number, the message with its header).

    What is cut short ends the walk.
    """
    view = memoryview(data)
    offset = 0
    while offset + HEADER.size <= len(view):
        length, kind, flags, sequence, _ = HEADER.unpack_from(view, offset)
        if length < HEADER.size or offset + length > len(view):
            return
        yield kind, flags, sequence, view[offset : offset + length]
        offset += (length + 3) & ~3
