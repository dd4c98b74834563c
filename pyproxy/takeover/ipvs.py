"""Leftovers of kube-proxy's ipvs mode beside its iptables rules: ipsets, a device, services.

A virtual service is kube-proxy's if its address is on the device kube-ipvs0, or if it is on an
address of this node with a port from the sets of node ports. Other virtual services stay, unlike in
kube-proxy's own cleanup.

A request to IPVS makes the kernel load the module ip_vs, so none is sent without leftovers of this
mode.
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

# Without this flag a dump contains the members of all sets.
_IPSET_FLAG_LIST_SETNAME = 1 << 1
_MISSING = (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)
"""Errors of a kernel without the subsystem: ENOENT of generic netlink, EINVAL of nfnetlink."""

_GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV)
# ipset has error numbers of its own, from IPSET_ERR_PRIVATE (4096) on.
_IPSET_ERR_BUSY = 4100
_AF = {4: 2, 16: 10}


def find_sets() -> tuple[str, ...]:
    """Return the names of kube-proxy's ipsets. Raises KernelError."""

    def read() -> list[str]:
        with IPSet() as sets:
            return [
                str(each.get_attr("IPSET_ATTR_SETNAME"))
                for each in sets.list(flags=_IPSET_FLAG_LIST_SETNAME)
            ]

    nothing: list[str] = []
    return tuple(sorted(kube_names.SETS.intersection(_read_or("listing ipsets", read, nothing))))


def find_links() -> tuple[str, ...]:
    """Return the name of kube-proxy's network device if it exists. Raises KernelError."""

    def read() -> tuple[str, ...]:
        with IPRoute() as routes:
            return (kube_names.DEVICE,) if routes.link_lookup(ifname=kube_names.DEVICE) else ()

    return _read_or("looking for a network device", read, ())


def find_services(links: tuple[str, ...], sets: tuple[str, ...]) -> tuple[VirtualService, ...]:
    """Return kube-proxy's virtual services, found by its device and its sets. Raises KernelError.

    If `links` has no device, the addresses on kube-ipvs0 are pyproxy's and do not count.
    """
    if not links and not sets:
        return ()

    def read() -> tuple[VirtualService, ...]:
        running = _virtual_services()
        own, local = _addresses()
        return choose(running, own if links else frozenset(), local, _node_ports(sets))

    return _read_or("listing IPVS virtual services", read, ())


def list_services() -> tuple[VirtualService, ...]:
    """Return the virtual services of all programs; empty without IPVS. Raises KernelError."""
    return _read_or("listing IPVS virtual services", lambda: tuple(_virtual_services()), ())


def choose(
    running: list[VirtualService],
    own: frozenset[Address],
    local: frozenset[Address],
    node_ports: frozenset[tuple[int, int]],
) -> tuple[VirtualService, ...]:
    """Return those virtual services that are kube-proxy's.

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
    """Delete a virtual service, if it exists. Raises KernelError."""
    with _translated(f"deleting the IPVS virtual service {service}"), IPVS() as ipvs:
        ipvs.service("del", service=identity(service))


def remove_link(name: str) -> None:
    """Delete a network device with its addresses, if it exists. Raises KernelError."""
    with _translated(f"deleting the network device {name}"), IPRoute() as routes:
        for index in routes.link_lookup(ifname=name):
            routes.link("del", index=index)


def remove_set(name: str) -> None:
    """Destroy an ipset, if it exists. Raises KernelError, TransientKernelError while in use."""
    with _translated(f"destroying the ipset {name}"), IPSet() as sets:
        sets.destroy(name)


def decode(message: Any) -> VirtualService | None:
    """Read a virtual service from the kernel's message; None for one by a firewall mark."""
    each = IPVSService.from_message(message)
    if "addr" not in each:  # kube-proxy never adds a service by mark
        return None
    address = parse_address(str(each["addr"]))
    return VirtualService(int(each["protocol"]), address, int(each["port"]))


def identity(service: VirtualService) -> Any:
    """Return the identity of a virtual service, as pyroute2 takes it."""
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
        # The type of the sets is bitmap:port for TCP and UDP, and hash:ip,port for SCTP.
        members = message.get_attr("IPSET_ATTR_ADT")
        for member in members.get_attrs("IPSET_ATTR_DATA") if members else ():
            port = member.get_attr("IPSET_ATTR_PORT_FROM")
            if port is not None:
                yield int(port)


def _read_or(doing: str, read: Callable[[], T], nothing: T) -> T:
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
        # A rule, or another set, that uses the ipset keeps it; kernel_error makes EBUSY transient.
        code = errno.EBUSY if error.code == _IPSET_ERR_BUSY else error.code
        raise kernel_error(code, doing) from error
