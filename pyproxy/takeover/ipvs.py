"""What kube-proxy's IPVS mode has left beside its iptables rules: sets, a device, services.

A virtual service is kube-proxy's where its address is on the device kube-ipvs0, or where it is one
of this machine's addresses with a port from the sets of node ports. Others' are left alone, which
kube-proxy's own cleanup does not do.

The kernel loads the module ip_vs when it is asked about it, so it is asked only where there is
something of this mode.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pyroute2 import IPVS, IPRoute, IPSet, IPVSService
from pyroute2.netlink.exceptions import IPSetError, NetlinkError

from pyproxy.model.address import Address, address_text, parse_address
from pyproxy.netlink.kernel_errors import kernel_error
from pyproxy.takeover.leftovers import VirtualService
from pyproxy.xtables import kube_names

T = TypeVar("T")

_IPSET_FLAG_LIST_SETNAME = 1 << 1
_MISSING = (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)
"""How the kernel says that it has no such subsystem."""

_GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV)
_IPSET_ERR_BUSY = 4100
_AF = {4: 2, 16: 10}


def find_sets() -> tuple[str, ...]:
    """Name kube-proxy's ipsets. Raises KernelError."""

    def read() -> list[str]:
        with IPSet() as sets:
            return [
                str(each.get_attr("IPSET_ATTR_SETNAME"))
                for each in sets.list(flags=_IPSET_FLAG_LIST_SETNAME)
            ]

    nothing: list[str] = []
    return tuple(sorted(kube_names.SETS.intersection(_asking("listing ipsets", read, nothing))))


def find_links() -> tuple[str, ...]:
    """Name kube-proxy's network device, if it is there. Raises KernelError."""

    def read() -> tuple[str, ...]:
        with IPRoute() as routes:
            return (kube_names.DEVICE,) if routes.link_lookup(ifname=kube_names.DEVICE) else ()

    return _asking("looking for a network device", read, ())


def find_services(links: tuple[str, ...], sets: tuple[str, ...]) -> tuple[VirtualService, ...]:
    """List kube-proxy's virtual services by its device and its sets. Raises KernelError.

    A device that is not among `links` is not kube-proxy's any more, and neither is what is there.
    """
    if not links and not sets:
        return ()

    def read() -> tuple[VirtualService, ...]:
        running = _virtual_services()
        own, local = _addresses()
        return choose(running, own if links else frozenset(), local, _node_ports(sets))

    return _asking("listing IPVS virtual services", read, ())


def choose(
    running: list[VirtualService],
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
    with _translated(f"deleting the IPVS virtual service {service}"), IPVS() as ipvs:
        ipvs.service("del", service=identity(service))


def remove_link(name: str) -> None:
    """Delete a network device, with its addresses. Raises KernelError."""
    with _translated(f"deleting the network device {name}"), IPRoute() as routes:
        for index in routes.link_lookup(ifname=name):
            routes.link("del", index=index)


def remove_set(name: str) -> None:
    """Destroy an ipset. Raises KernelError, TransientKernelError while a rule uses it."""
    with _translated(f"destroying the ipset {name}"), IPSet() as sets:
        sets.destroy(name)


def decode(message: Any) -> VirtualService | None:
    """Read one of the kernel's messages; None for a service by a firewall mark."""
    each = IPVSService.from_message(message)
    if "addr" not in each:  # kube-proxy makes none of these
        return None
    address = parse_address(str(each["addr"]))
    return VirtualService(int(each["protocol"]), address, int(each["port"]))


def identity(service: VirtualService) -> Any:
    """Write what the kernel knows a virtual service by, as pyroute2 takes it."""
    return IPVSService(
        af=_AF[len(service.address)],
        protocol=service.protocol,
        addr=address_text(service.address),
        port=service.port,
    )


def _virtual_services() -> list[VirtualService]:
    with IPVS() as ipvs:
        return [found for message in ipvs.service("dump") if (found := decode(message))]


def _addresses() -> tuple[frozenset[Address], frozenset[Address]]:
    with IPRoute() as routes:
        device = set(routes.link_lookup(ifname=kube_names.DEVICE))
        found: dict[bool, set[Address]] = {True: set(), False: set()}
        for message in routes.get_addr():
            address = parse_address(str(message.get_attr("IFA_ADDRESS")))
            found[message["index"] in device].add(address)
    return frozenset(found[True]), frozenset(found[False])


def _node_ports(sets: tuple[str, ...]) -> frozenset[tuple[int, int]]:
    found: set[tuple[int, int]] = set()
    with IPSet() as ipset:
        for name, protocol in kube_names.NODE_PORT_SETS.items():
            for each in {name, kube_names.ipv6_set(name)}.intersection(sets):
                found.update((protocol, port) for port in _ports(ipset.list(each)))
    return frozenset(found)


def _ports(messages: Any) -> Iterator[int]:
    for message in messages:
        members = message.get_attr("IPSET_ATTR_ADT")
        for member in members.get_attrs("IPSET_ATTR_DATA") if members else ():
            port = member.get_attr("IPSET_ATTR_PORT_FROM")
            if port is not None:
                yield int(port)


def _asking(doing: str, read: Callable[[], T], nothing: T) -> T:
    try:
        return read()
    except (NetlinkError, IPSetError) as error:
        if error.code in _MISSING:
            return nothing
        raise kernel_error(error.code, doing) from error


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except (NetlinkError, IPSetError) as error:
        if error.code in _GONE:
            return
        code = errno.EBUSY if error.code == _IPSET_ERR_BUSY else error.code
        raise kernel_error(code, doing) from error
