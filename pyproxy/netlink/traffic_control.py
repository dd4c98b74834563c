"""Queueing disciplines and filters of network devices, over rtnetlink.

Facts: include/uapi/linux/rtnetlink.h and pkt_sched.h, net/sched/sch_api.c and cls_api.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import msgspec

from pyproxy.netlink.attributes import attribute_map, text
from pyproxy.netlink.requests import Request

_GETQDISC, _GETTFILTER = 38, 46
_TCA_KIND = 1
_TCMSG = struct.Struct("=BxxxiIII")
ROOT = 0xFFFFFFFF
_INGRESS_HANDLE, _CLSACT_INGRESS, _CLSACT_EGRESS = 0xFFFF0000, 0xFFFFFFF2, 0xFFFFFFF3
# The parents of filters, by the kind of the discipline that they belong to.
_PARENTS = {
    "clsact": ((_CLSACT_INGRESS, "ingress"), (_CLSACT_EGRESS, "egress")),
    "ingress": ((_INGRESS_HANDLE, "ingress"),),
}


class Qdisc(msgspec.Struct, frozen=True):
    """A queueing discipline of a device; `parent` is ROOT for the one that sends."""

    device: int
    kind: str
    parent: int


def get_qdiscs() -> Request:
    """Request the disciplines of all devices in a dump; those without a queue are left out."""
    return Request(_GETQDISC, 0, _TCMSG.pack(0, 0, 0, 0, 0))


def read_qdiscs(replies: Iterable[memoryview]) -> Iterator[Qdisc]:
    """Read the replies to `get_qdiscs`."""
    for reply in replies:
        if len(reply) >= _TCMSG.size:
            _, device, _, parent, _ = _TCMSG.unpack_from(reply)
            yield Qdisc(device, _kind(reply), parent)


def get_filters(qdisc: Qdisc) -> Iterator[tuple[str, Request]]:
    """Yield the direction and the request of each list of filters, for dumps."""
    for parent, direction in _PARENTS.get(qdisc.kind, ()):
        yield direction, Request(_GETTFILTER, 0, _TCMSG.pack(0, qdisc.device, 0, parent, 0))


def read_filters(replies: Iterable[memoryview]) -> list[str]:
    """Return the kinds of filters, such as bpf or flower, each once."""
    found = (_kind(reply) for reply in replies if len(reply) >= _TCMSG.size)
    return list(dict.fromkeys(filter(None, found)))


def _kind(reply: memoryview) -> str:
    return text(attribute_map(reply[_TCMSG.size :]).get(_TCA_KIND, memoryview(b"")))
