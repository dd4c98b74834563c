"""Traffic control, XDP programs and IPsec policies that a Service's packets may meet."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import closing

import msgspec

from pyproxy.errors import KernelError
from pyproxy.hostnet.devices import Devices
from pyproxy.hostnet.packet import ServicePaths
from pyproxy.netlink.requests import Requests
from pyproxy.netlink.sockets import NETLINK_ROUTE
from pyproxy.netlink.traffic_control import (
    ROOT,
    Qdisc,
    get_filters,
    get_qdiscs,
    read_filters,
    read_qdiscs,
)
from pyproxy.netlink.xfrm import (
    NETLINK_XFRM,
    Policy,
    get_default,
    get_policies,
    read_default,
    read_policies,
)

_MAX_DEVICES = 300


class DeviceProgram(msgspec.Struct, frozen=True):
    """A program or filter of a device; `what` names it: "a tc filter (bpf) at ingress"."""

    device: str
    what: str


class TransformFacts(msgspec.Struct, frozen=True):
    """Filters and programs of the packets' devices, their queues, and the IPsec policies.

    `queues` are pairs of a device and the kind of its discipline. `blocked` are the directions that
    the default policy blocks. `unread` are parts that were not read, each with the reason.
    """

    programs: tuple[DeviceProgram, ...] = ()
    queues: tuple[tuple[str, str], ...] = ()
    policies: tuple[Policy, ...] = ()
    blocked: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def read_transforms(paths: ServicePaths, devices: Devices) -> TransformFacts:
    """Read the filters of the paths' devices and all policies. Blocks. Raises KernelError."""
    names = dict(list(_devices(paths, devices))[:_MAX_DEVICES])
    programs = [
        DeviceProgram(names[link.index], "an XDP program")
        for link in devices.links.values()
        if link.xdp and link.index in names
    ]
    queues = []
    with closing(Requests(NETLINK_ROUTE, "rtnetlink")) as kernel:
        for qdisc in _read_qdiscs(kernel):
            if qdisc.device not in names:
                continue
            if qdisc.parent == ROOT:
                queues.append((names[qdisc.device], qdisc.kind))
            for direction, request in get_filters(qdisc):
                kinds = read_filters(kernel.dump(request))
                programs += [
                    DeviceProgram(names[qdisc.device], f"a tc filter ({kind}) at {direction}")
                    for kind in kinds
                ]
    policies, blocked, unread = _read_policies()
    return TransformFacts(tuple(programs), tuple(queues), policies, blocked, unread)


def _read_qdiscs(kernel: Requests) -> list[Qdisc]:
    try:
        return list(read_qdiscs(kernel.dump(get_qdiscs())))
    except KernelError as error:
        # A kernel without traffic control has no such request.
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise


def _read_policies() -> tuple[tuple[Policy, ...], tuple[str, ...], tuple[str, ...]]:
    try:
        with closing(Requests(NETLINK_XFRM, "xfrm")) as kernel:
            found = sorted(
                read_policies(kernel.dump(get_policies())), key=lambda each: each.priority
            )
            try:
                blocked = read_default(kernel.get(get_default()))
            except KernelError as error:
                # A kernel before 5.15 has no such request, and no default but to accept.
                if error.errno != errno.EINVAL:
                    raise
                blocked = []
    except KernelError as error:
        # A kernel without IPsec has no such protocol.
        absent = error.errno == errno.EPROTONOSUPPORT
        return (), (), () if absent else (f"IPsec policies: {error}",)
    return tuple(found), tuple(blocked), ()


def _devices(paths: ServicePaths, devices: Devices) -> Iterator[tuple[int, str]]:
    """Yield the devices of the packets, and the ports of those that are bridges."""
    names = {
        name: None
        for path in paths.paths
        for name in (path.leaving.in_device, path.leaving.out_device)
        if name
    }
    masters = set()
    for name in names:
        if link := devices.named(name):
            masters.add(link.index)
            yield link.index, name
    for link in devices.links.values():
        if link.master in masters:
            yield link.index, link.name
