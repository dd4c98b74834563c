"""What kube-proxy's IPVS mode has left beside its iptables rules: sets, a device, services.

A virtual service is kube-proxy's where its address is on the device kube-ipvs0, or where it is one
of this machine's addresses with a port from the sets of node ports. Others' are left alone, which
kube-proxy's own cleanup does not do.

The kernel loads the module ip_vs when it is asked about it, so it is asked only where there is
something of this mode.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import TypeVar

from pyproxy.errors import KernelError
from pyproxy.model.address import Address, Port, family_of
from pyproxy.netlink import addresses, ipsets, ipvs
from pyproxy.netlink.ipvs import Messages, Virtual
from pyproxy.netlink.nfnetlink import Nfnetlink, kernel_error
from pyproxy.netlink.requests import NETLINK_GENERIC, NETLINK_ROUTE, Request, Requests
from pyproxy.takeover import names
from pyproxy.takeover.leftovers import VirtualService

T = TypeVar("T")

_MISSING = (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)
"""How the kernel says that it has no such subsystem."""

_GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV)


def find_sets(netlink: Nfnetlink) -> tuple[str, ...]:
    """Name kube-proxy's ipsets. Raises KernelError."""
    found: set[str] = _unless_missing(lambda: ipsets.read_names(netlink), set())
    return tuple(sorted(names.SETS & found))


def find_links() -> tuple[str, ...]:
    """Name kube-proxy's network device, if it is there. Raises KernelError."""
    with closing(Requests(NETLINK_ROUTE)) as kernel:
        return (names.DEVICE,) if addresses.device_number(kernel, names.DEVICE) else ()


def find_services(
    netlink: Nfnetlink, links: tuple[str, ...], sets: tuple[str, ...]
) -> tuple[VirtualService, ...]:
    """List kube-proxy's virtual services by its device and its sets. Raises KernelError.

    A device that is not among `links` is not kube-proxy's any more, and neither is what is there.
    """
    if not links and not sets:
        return ()

    def read() -> tuple[VirtualService, ...]:
        running = _virtual_services()
        own, local = _addresses()
        return choose(running, own if links else frozenset(), local, _node_ports(netlink, sets))

    return _unless_missing(read, ())


def choose(
    running: Iterable[VirtualService],
    own: frozenset[Address],
    local: frozenset[Address],
    node_ports: frozenset[tuple[int, int]],
) -> tuple[VirtualService, ...]:
    """Tell kube-proxy's virtual services from others.

    `own` are the addresses on kube-ipvs0, `local` those of other devices; `node_ports` are pairs
    of protocol and port.
    """
    return tuple(
        service
        for service in sorted(running)
        if service.address in own
        or (service.address in local and (service.protocol, service.port) in node_ports)
    )


def remove_service(service: VirtualService) -> None:
    """Delete a virtual service; one that is gone is all right. Raises KernelError."""
    with closing(Requests(NETLINK_GENERIC)) as kernel:
        request = _messages(kernel).delete_virtual(identity(service))
        _do(kernel, request, f"deleting the IPVS virtual service {service}")


def remove_link(name: str) -> None:
    """Delete a network device, with its addresses. Raises KernelError."""
    with closing(Requests(NETLINK_ROUTE)) as kernel:
        if number := addresses.device_number(kernel, name):
            _do(kernel, addresses.delete_link(number), f"deleting the network device {name}")


def remove_set(netlink: Nfnetlink, name: str) -> None:
    """Destroy an ipset. Raises KernelError, TransientKernelError while a rule uses it."""
    error = ipsets.destroy(netlink, name)
    if error is not None and error.errno not in _GONE:
        raise kernel_error(error.errno, f"destroying the ipset {name}") from error


def of_addresses(running: Iterable[Virtual]) -> list[VirtualService]:
    """Leave out those by a firewall mark, of which kube-proxy makes none."""
    return [
        VirtualService(each.protocol, each.address, each.port) for each in running if not each.mark
    ]


def identity(service: VirtualService) -> Virtual:
    """Write what the kernel knows a virtual service by."""
    address = service.address
    return Virtual(family_of(address), service.protocol, address, Port(service.port))


def _virtual_services() -> list[VirtualService]:
    with closing(Requests(NETLINK_GENERIC)) as kernel:
        return of_addresses(ipvs.virtuals(kernel.dump(_messages(kernel).get_virtuals())))


def _messages(kernel: Requests) -> Messages:
    return Messages(ipvs.family_id(kernel.ask(ipvs.get_family())))


def _addresses() -> tuple[frozenset[Address], frozenset[Address]]:
    with closing(Requests(NETLINK_ROUTE)) as kernel:
        device = addresses.device_number(kernel, names.DEVICE)
        found: dict[bool, set[Address]] = {True: set(), False: set()}
        for each in addresses.addresses(kernel.dump(addresses.get_addresses())):
            found[bool(device) and each.device == device].add(each.address)
    return frozenset(found[True]), frozenset(found[False])


def _node_ports(netlink: Nfnetlink, sets: tuple[str, ...]) -> frozenset[tuple[int, int]]:
    return frozenset(
        (protocol, port)
        for name, protocol in names.NODE_PORT_SETS.items()
        for each in {name, names.ipv6_set(name)}.intersection(sets)
        for port in ipsets.read_ports(netlink, each)
    )


def _unless_missing(read: Callable[[], T], nothing: T) -> T:
    try:
        return read()
    except KernelError as error:
        if error.errno in _MISSING:
            return nothing
        raise


def _do(kernel: Requests, request: Request, doing: str) -> None:
    for refusal in kernel.send([request]):
        if refusal.errno not in _GONE:
            raise kernel_error(refusal.errno, doing)
