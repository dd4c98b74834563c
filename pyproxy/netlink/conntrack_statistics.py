"""The counters of conntrack, summed over all processors, over ctnetlink.

Facts: include/uapi/linux/netfilter/nfnetlink_conntrack.h, enum ctattr_stats_cpu.
"""

from __future__ import annotations

from contextlib import closing

import msgspec

from pyproxy.netlink.attributes import attribute_map
from pyproxy.netlink.nfnetlink import pack_family
from pyproxy.netlink.requests import Request, Requests
from pyproxy.netlink.sockets import NETLINK_NETFILTER

_GET_STATS_CPU = 0x104
_NFGENMSG_SIZE = 4
_INVALID, _INSERT_FAILED, _DROP, _EARLY_DROP = 4, 9, 10, 11


class ConntrackCounters(msgspec.Struct, frozen=True):
    """Packets since this network namespace was made.

    `dropped` found the table full or no memory, `early_dropped` are entries that were deleted to
    make room, `insert_failed` packets lost to another entry with the same addresses, `invalid`
    packets that belong to no connection.
    """

    dropped: int = 0
    early_dropped: int = 0
    insert_failed: int = 0
    invalid: int = 0


def read_counters() -> ConntrackCounters:
    """Read the counters. Blocks for a dump. Raises KernelError."""
    with closing(Requests(NETLINK_NETFILTER, "conntrack")) as kernel:
        replies = kernel.dump(Request(_GET_STATS_CPU, 0, pack_family(0)))
    sums = dict.fromkeys((_DROP, _EARLY_DROP, _INSERT_FAILED, _INVALID), 0)
    for reply in replies:
        fields = attribute_map(reply[_NFGENMSG_SIZE:])
        for kind in sums:
            sums[kind] += int.from_bytes(fields.get(kind, b""), "big")
    return ConntrackCounters(*sums.values())
