"""Other Service proxies on this node: the frontends that they have programmed too.

These are the rules of kube-proxy's modes and of pyproxy's iptables mode, IPVS virtual services of
any program, and the network devices of Cilium and kube-router. Rules of the agent's own mode are
not looked at: the step `kernel` compares them.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path

import msgspec

from pyproxy.errors import PyproxyError, StaleStateError
from pyproxy.hostnet.packet import ServicePaths
from pyproxy.model.address import Address, Family, Network, family_of
from pyproxy.model.destination import Destination
from pyproxy.model.flavour import Flavour
from pyproxy.netlink.elements import get_element
from pyproxy.netlink.nfnetlink import NFPROTO_IPV4, NFPROTO_IPV6, Nfnetlink
from pyproxy.netlink.nftables import get_tables, read_table_names
from pyproxy.xtables import kube_names, programs
from pyproxy.xtables.programs import has_legacy_tables
from pyproxy.xtables.saved import SavedTable, target

_IP_VS = Path("/proc/thread-self/net/ip_vs")
"""Exists if the kernel has loaded IPVS; of the caller's network namespace."""

DEVICES = {"cilium_host": "Cilium", "kube-dummy-if": "kube-router"}
"""Network devices of programs that can replace kube-proxy."""

_NFPROTO = {Family.IPV4: NFPROTO_IPV4, Family.IPV6: NFPROTO_IPV6}
_TABLE_FAMILIES = {Family.IPV4: "ip", Family.IPV6: "ip6"}
# kube-proxy's maps, from address . protocol . port, and from protocol . port, to a verdict.
_SERVICE_IPS = ("service-ips", "no-endpoint-services")
_NODE_PORTS = ("service-nodeports", "no-endpoint-nodeports")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


class OtherProxy(msgspec.Struct, frozen=True):
    """A proxy that has programmed frontends of the Service.

    `where` is the place of its rules, `frontends` are texts.
    """

    name: str
    where: str
    frontends: tuple[str, ...]


class ProxyFacts(msgspec.Struct, frozen=True):
    """Proxies that serve the same frontends, devices of others, and places not read.

    `unread` has a line for each place that could not be read, with the reason.
    """

    serving: tuple[OtherProxy, ...] = ()
    devices: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def read_proxies(paths: ServicePaths) -> ProxyFacts:
    """Look for other proxies that program the frontends of paths.

    Blocks for a few requests to the kernel, and for iptables-save where such rules exist. Raises
    OSError.
    """
    frontends = tuple(dict.fromkeys(path.arriving.addressed_to for path in paths.paths))
    serving: list[OtherProxy] = []
    unread: list[str] = []
    readers: list[Callable[[], Iterable[OtherProxy]]] = [
        lambda: _in_nftables(frontends, paths.node_addresses)
    ]
    if not paths.owns_iptables:
        readers.append(lambda: _in_iptables(frontends, paths.node_addresses))
    if not paths.owns_ipvs:
        readers.append(lambda: _in_ipvs(frontends))
    for read in readers:
        try:
            serving += read()
        except PyproxyError as error:
            unread.append(str(error))
    names = {name for _, name in socket.if_nameindex()}
    return ProxyFacts(tuple(serving), tuple(sorted(names & DEVICES.keys())), tuple(unread))


def _in_nftables(
    frontends: Sequence[Destination], node_addresses: Sequence[Address]
) -> Iterator[OtherProxy]:
    """Find frontends in the tables of kube-proxy's nftables mode. Raises KernelError."""
    table = kube_names.NFTABLES_TABLE
    with closing(Nfnetlink()) as netlink:
        for family, number in _NFPROTO.items():
            if table not in read_table_names(netlink.dump(get_tables(number))):
                continue
            found = [
                str(each)
                for each in frontends
                if family_of(each.address) is family
                and (
                    _has_element(netlink, number, _SERVICE_IPS, _key(each, each.address))
                    or (
                        each.address in node_addresses
                        and _has_element(netlink, number, _NODE_PORTS, _key(each))
                    )
                )
            ]
            if found:
                where = f"nftables table {_TABLE_FAMILIES[family]} {table}"
                yield OtherProxy("kube-proxy", where, tuple(found))


def _key(frontend: Destination, address: Address | None = None) -> bytes:
    """Pack a concatenation, each part of which nf_tables pads to four bytes."""
    protocol = bytes([frontend.protocol.value]).ljust(4, b"\0")
    return bytes(address or b"") + protocol + frontend.port.to_bytes(2, "big").ljust(4, b"\0")


def _has_element(netlink: Nfnetlink, family: int, names: Iterable[str], key: bytes) -> bool:
    for name in names:
        request = get_element(kube_names.NFTABLES_TABLE, name, key)
        with suppress(StaleStateError):  # ENOENT
            netlink.get(msgspec.structs.replace(request, family=family))
            return True
    return False


def _in_iptables(
    frontends: Sequence[Destination], node_addresses: Sequence[Address]
) -> Iterator[OtherProxy]:
    """Find frontends in the chains that kube-proxy and pyproxy's iptables mode use.

    Raises KernelError, and UsageError if iptables-save is missing.
    """
    with closing(Nfnetlink()) as netlink:
        nft = {
            family
            for family, number in _NFPROTO.items()
            if "nat" in read_table_names(netlink.dump(get_tables(number)))
        }
    for program in programs.ALL:
        mine = [each for each in frontends if family_of(each.address) is program.family]
        # Without tables the legacy program would load the kernel's module.
        is_nft = program.flavour is Flavour.NFT
        there = program.family in nft if is_nft else has_legacy_tables(program.family)
        if not mine or not there:
            continue
        nat = program.save().get("nat")
        if nat is None:
            continue
        found = [str(each) for each in mine if _has_rule(nat, each, node_addresses)]
        if found:
            name = "pyproxy in iptables mode" if _is_pyproxy(nat) else "kube-proxy"
            yield OtherProxy(name, f"{program} nat", tuple(found))


def _is_pyproxy(nat: SavedTable) -> bool:
    return any(chain.startswith(kube_names.SERVICE_TREE) for chain in nat.chains)


def _has_rule(nat: SavedTable, frontend: Destination, node_addresses: Sequence[Address]) -> bool:
    network = str(Network(frontend.address, 8 * len(frontend.address)))
    words = {"-p": frontend.protocol.name.lower(), "--dport": str(frontend.port)}
    for chain, rules in nat.chains.items():
        if chain == kube_names.SERVICES or chain.startswith(kube_names.SERVICE_TREE):
            wanted = words | {"-d": network}
        elif chain == kube_names.NODE_PORTS and frontend.address in node_addresses:
            wanted = words
        else:
            continue
        if any(_matches(rule, wanted) for rule in rules):
            return True
    return False


def _matches(rule: str, wanted: dict[str, str]) -> bool:
    # A comment may contain anything; most rules are of other ports.
    if f"--dport {wanted['--dport']}" not in rule or not target(rule).startswith("KUBE-"):
        return False
    pairs = set(pairwise(_QUOTED.sub('""', rule).split()))
    return wanted.items() <= pairs


def _in_ipvs(frontends: Sequence[Destination]) -> Iterator[OtherProxy]:
    """Find frontends among IPVS virtual services. Raises KernelError."""
    if not _IP_VS.exists():
        return
    # Imports pyroute2, which takes as long as the rest of the command.
    from pyproxy.takeover import ipvs  # noqa: PLC0415

    running = {(each.protocol, each.address, each.port): each for each in ipvs.list_services()}
    found = [
        str(each) for each in frontends if (each.protocol.value, each.address, each.port) in running
    ]
    if found:
        yield OtherProxy("a proxy with IPVS", "IPVS virtual services", tuple(found))
