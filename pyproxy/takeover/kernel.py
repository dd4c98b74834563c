"""Find and remove kube-proxy's leftovers of all its modes: all the I/O for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import TypeVar

from pyproxy.errors import KernelError, RejectedError, StaleStateError, TransientKernelError
from pyproxy.model.address import Family
from pyproxy.netlink import nftables
from pyproxy.netlink.kernel_errors import MessageError
from pyproxy.netlink.nfacct import delete_counter, list_counters
from pyproxy.netlink.nfnetlink import NFPROTO_IPV4, NFPROTO_IPV6, Nfnetlink
from pyproxy.takeover import iptables, ipvs
from pyproxy.takeover.leftovers import (
    Failure,
    InService,
    Leftovers,
    VirtualService,
    table_name,
)
from pyproxy.xtables import kube_names, programs

T = TypeVar("T")

_NOTHING = InService()
_NFPROTO = {Family.IPV4: NFPROTO_IPV4, Family.IPV6: NFPROTO_IPV6}

# nf_tables frees the rules of a transaction some time after it; until then their sets are in use.
_BUSY_TIMEOUT = 2.0
_BUSY_PAUSE = 0.05


def find(in_service: InService = _NOTHING) -> Leftovers:
    """Return all of kube-proxy's objects in the kernel; an error in one kind hides no other.

    Objects in service are left out: of iptables rules in service only those of kube-proxy's ipvs
    mode are returned, and nothing of IPVS if that is in service. Raises KernelError without
    netfilter.
    """
    unread: list[Failure] = []

    def reading(what: str, read: Callable[[], tuple[T, ...]]) -> tuple[T, ...]:
        try:
            return read()
        except KernelError as error:
            unread.append(Failure(what, error))
            return ()

    netlink = Nfnetlink()
    try:
        tables = reading("nftables tables", partial(_find_tables, netlink))
        counters = reading("nfacct objects", partial(_find_counters, netlink))
    finally:
        netlink.close()
    # pyproxy's iptables mode increments the same nfacct objects as kube-proxy's.
    if in_service.flavour is not None:
        counters = ()
    rules = [
        reading(
            f"rules of {program}",
            partial(
                iptables.find_rules,
                program,
                kube_names.is_kube_proxy_ipvs
                if program.flavour is in_service.flavour
                else kube_names.is_owned,
            ),
        )
        for program in programs.ALL
    ]
    # pyproxy's ipvs mode has its sets in nftables, so these ipsets are always kube-proxy's.
    sets = reading("ipsets", ipvs.find_sets)
    links: tuple[str, ...] = ()
    services: tuple[VirtualService, ...] = ()
    if not in_service.ipvs:
        links = reading("network devices", ipvs.find_links)
        services = reading("IPVS virtual services", partial(ipvs.find_services, links, sets))
    return Leftovers(tables, tuple(chain(*rules)), services, links, sets, counters, tuple(unread))


def find_node_port_services() -> tuple[VirtualService, ...]:
    """Return kube-proxy's virtual services on the node's own addresses. Raises KernelError."""
    # Without the device, because in ipvs mode its addresses are pyproxy's too.
    return ipvs.find_services((), ipvs.find_sets())


def remove(found: Leftovers) -> tuple[Failure, ...]:
    """Remove leftovers, and return those that could not be removed. Raises KernelError.

    Rules go first, so that pyproxy handles every packet from then on. Objects that rules use go
    after them.
    """
    netlink = Nfnetlink()
    try:
        done = [_do(what, step) for what, step in _steps(found, netlink)]
        return tuple(failure for failure in done if failure is not None)
    finally:
        netlink.close()


def _steps(found: Leftovers, netlink: Nfnetlink) -> Iterator[tuple[str, Callable[[], None]]]:
    for family in found.tables:
        yield f"nftables table {table_name(family)}", partial(_remove_table, netlink, family)
    for each in found.iptables:
        yield str(each), partial(iptables.remove_rules, each)
    for service in found.services:
        yield f"IPVS virtual service {service}", partial(ipvs.remove_service, service)
    for link in found.links:
        yield f"network device {link}", partial(ipvs.remove_link, link)
    for name in found.sets:
        yield f"ipset {name}", partial(_once_unused, partial(ipvs.remove_set, name))
    for name in found.counters:
        remove_counter = partial(_remove_counter, netlink, name)
        yield f"nfacct object {name}", partial(_once_unused, remove_counter)


def _do(what: str, step: Callable[[], None]) -> Failure | None:
    try:
        step()
    except KernelError as error:
        return Failure(what, error)
    return None


def _remove_table(netlink: Nfnetlink, family: Family) -> None:
    message = nftables.delete_table(kube_names.NFTABLES_TABLE, _NFPROTO[family])
    for error in netlink.transact([message], nftables.SUBSYSTEM):
        _raise_unless_gone(error)


def _remove_counter(netlink: Nfnetlink, name: str) -> None:
    if error := delete_counter(netlink, name):
        _raise_unless_gone(error)


def _raise_unless_gone(error: MessageError) -> None:
    if not isinstance(error.error, StaleStateError):
        raise error.error


def _once_unused(remove: Callable[[], None]) -> None:
    deadline = time.monotonic() + _BUSY_TIMEOUT
    while True:
        try:
            remove()
        except TransientKernelError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_BUSY_PAUSE)
        else:
            return


def _find_tables(netlink: Nfnetlink) -> tuple[Family, ...]:
    return tuple(
        family
        for family, number in _NFPROTO.items()
        if kube_names.NFTABLES_TABLE
        in nftables.read_table_names(netlink.dump(nftables.get_tables(number)))
    )


def _find_counters(netlink: Nfnetlink) -> tuple[str, ...]:
    try:
        return tuple(sorted(kube_names.COUNTERS & list_counters(netlink)))
    except RejectedError:  # a kernel without nfacct
        return ()
