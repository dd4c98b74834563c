"""kube-proxy's leftovers in the kernel, as a value that can be printed before it is removed."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import msgspec

from pyproxy.errors import KernelError
from pyproxy.model.address import Address, Family, address_text
from pyproxy.model.flavour import Flavour
from pyproxy.xtables import kube_names
from pyproxy.xtables.programs import Programs
from pyproxy.xtables.removal import TableRemoval

_FAMILY_NAMES = {Family.IPV4: "ip", Family.IPV6: "ip6"}


class InService(msgspec.Struct, frozen=True):
    """The kernel objects of the serving dataplane, which must stay.

    `flavour` is that of its iptables rules, None if it has none.
    """

    flavour: Flavour | None = None
    ipvs: bool = False


class IptablesRemoval(msgspec.Struct, frozen=True):
    """The removal from one table of one family and flavour of iptables."""

    program: Programs
    removal: TableRemoval

    def __str__(self) -> str:
        return f"{self.program} {self.removal.table}"


class VirtualService(msgspec.Struct, frozen=True, order=True):
    """An IPVS virtual service; `protocol` is a number."""

    protocol: int
    address: Address
    port: int

    def __str__(self) -> str:
        text = address_text(self.address)
        return f"{f'[{text}]' if ':' in text else text}:{self.port} (protocol {self.protocol})"


class Failure(msgspec.Struct, frozen=True):
    """An object that could not be removed, or a kind of object that could not be read."""

    what: str
    error: KernelError


class Leftovers(msgspec.Struct, frozen=True):
    """All leftovers: `tables` are the families of nftables tables, `links` network devices.

    `unread` names the kinds of object that could not be read, of which there may be more.
    """

    tables: tuple[Family, ...] = ()
    iptables: tuple[IptablesRemoval, ...] = ()
    services: tuple[VirtualService, ...] = ()
    links: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    counters: tuple[str, ...] = ()
    unread: tuple[Failure, ...] = ()

    def __bool__(self) -> bool:
        # `unread` does not count: it names nothing that could be removed.
        return any(True for _ in self.lines())

    def lines(self) -> Iterator[str]:
        """Yield a line for each object, for people."""
        yield from (f"nftables table {table_name(family)}" for family in self.tables)
        for each in self.iptables:
            yield from (f"{each}: {line}" for line in each.removal.lines())
        yield from (f"IPVS virtual service {service}" for service in self.services)
        yield from (f"network device {link}" for link in self.links)
        yield from (f"ipset {name}" for name in self.sets)
        yield from (f"nfacct object {name}" for name in self.counters)

    def without(self, failures: Collection[Failure]) -> Leftovers:
        """Leave out the objects that could not be removed, as `kernel.remove` returns them."""
        failed = {failure.what for failure in failures}
        return Leftovers(
            tuple(
                each for each in self.tables if f"nftables table {table_name(each)}" not in failed
            ),
            tuple(each for each in self.iptables if str(each) not in failed),
            tuple(each for each in self.services if f"IPVS virtual service {each}" not in failed),
            tuple(each for each in self.links if f"network device {each}" not in failed),
            tuple(each for each in self.sets if f"ipset {each}" not in failed),
            tuple(each for each in self.counters if f"nfacct object {each}" not in failed),
            self.unread,
        )

    def __str__(self) -> str:
        """Return a summary for one log line."""
        parts = [f"nftables table {table_name(family)}" for family in self.tables]
        for program in dict.fromkeys(each.program for each in self.iptables):
            removals = [each.removal for each in self.iptables if each.program == program]
            jumps = sum(len(each.jumps) for each in removals)
            chains = sum(len(each.chains) + len(each.emptied) for each in removals)
            parts.append(f"{program}: {_count(jumps, 'jump')} and {_count(chains, 'chain')}")
        parts += [f"network device {link}" for link in self.links]
        named = (
            (self.services, "IPVS virtual service"),
            (self.sets, "ipset"),
            (self.counters, "nfacct object"),
        )
        parts += [_count(len(objects), name) for objects, name in named if objects]
        return "; ".join(parts)


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"


def table_name(family: Family) -> str:
    """Return kube-proxy's nftables table of a family, as nft names it."""
    return f"{_FAMILY_NAMES[family]} {kube_names.NFTABLES_TABLE}"
