"""ipset's sets: their names, the ports that are in them, and their end.

Facts: include/uapi/linux/netfilter/ipset/ip_set.h. One that a rule names cannot be destroyed.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

from pyproxy.errors import KernelError
from pyproxy.netlink.attributes import attribute, attribute_map, attributes, string, text
from pyproxy.netlink.nfnetlink import NFPROTO_IPV4, NLM_F_EXCL, Message, Nfnetlink, kernel_error

_SUBSYSTEM = 6
_DESTROY, _LIST = 3, 7
_PROTOCOL, _NAME, _FLAGS, _DATA, _MEMBERS = 1, 2, 6, 7, 8
_PORT = 4
_NAMES_ALONE = struct.pack(">I", 1 << 1)
_VERSION = attribute(_PROTOCOL, b"\x06")
"""The oldest protocol that kernels still speak."""

_IN_USE = 4100
"""IPSET_ERR_BUSY: numbers from 4096 on are ipset's own."""


def read_names(netlink: Nfnetlink) -> set[str]:
    """Name all sets. Raises KernelError, RejectedError where the kernel has no ipset."""
    answers = netlink.dump(_message(_LIST, attribute(_FLAGS, _NAMES_ALONE)))
    return {text(fields[_NAME]) for fields in map(attribute_map, answers) if _NAME in fields}


def read_ports(netlink: Nfnetlink, name: str) -> Iterator[int]:
    """Read the ports of a set's members. Raises KernelError."""
    for answer in netlink.dump(_message(_LIST, string(_NAME, name))):
        for kind, member in attributes(attribute_map(answer).get(_MEMBERS, b"")):
            if kind == _DATA and (port := attribute_map(member).get(_PORT)):
                yield int.from_bytes(port, "big")


def destroy(netlink: Nfnetlink, name: str) -> KernelError | None:
    """Destroy a set; EBUSY while a rule names it, ENOENT where there is none."""
    # Without that flag newer kernels are content where there is no such set, and older ones not.
    refusal = netlink.ask(_message(_DESTROY, string(_NAME, name), NLM_F_EXCL))
    if refusal is None:
        return None
    if refusal.errno == _IN_USE:
        return kernel_error(errno.EBUSY, refusal.words)
    return refusal.error


def _message(command: int, body: bytes, flags: int = 0) -> Message:
    return Message(_SUBSYSTEM << 8 | command, flags, _VERSION + body, NFPROTO_IPV4)
