"""nfacct's objects: named counters that iptables rules count into.

Facts: include/uapi/linux/netfilter/nfnetlink_acct.h. One that a rule names cannot be deleted.
"""

from __future__ import annotations

from pyproxy.netlink.attributes import attribute, attribute_map, string, text
from pyproxy.netlink.frames import NLM_F_CREATE, NLM_F_EXCL
from pyproxy.netlink.kernel_errors import MessageError
from pyproxy.netlink.nfnetlink import NFPROTO_UNSPEC, Message, Nfnetlink

_SUBSYSTEM = 7
_NEW, _GET, _DEL = 0, 1, 3
_NAME, _PACKETS, _BYTES = 1, 2, 3


def read_counters(netlink: Nfnetlink) -> set[str]:
    """Name all counters. Raises KernelError, RejectedError where the kernel has no nfacct."""
    replies = netlink.dump(Message(_SUBSYSTEM << 8 | _GET, 0, b"", NFPROTO_UNSPEC))
    return {text(attribute_map(reply)[_NAME]) for reply in replies}


def create_counter(netlink: Nfnetlink, name: str) -> MessageError | None:
    """Create a counter that is at 0; EEXIST where there is one, EINVAL without nfacct."""
    zero = bytes(8)
    body = string(_NAME, name) + attribute(_PACKETS, zero) + attribute(_BYTES, zero)
    flags = NLM_F_CREATE | NLM_F_EXCL
    return netlink.ask(Message(_SUBSYSTEM << 8 | _NEW, flags, body, NFPROTO_UNSPEC))


def delete_counter(netlink: Nfnetlink, name: str) -> MessageError | None:
    """Delete a counter; EBUSY while a rule names it, ENOENT where there is none."""
    return netlink.ask(
        Message(_SUBSYSTEM << 8 | _DEL, 0, string(_NAME, name), NFPROTO_UNSPEC),
    )
