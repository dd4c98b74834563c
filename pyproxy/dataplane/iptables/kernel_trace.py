"""What becomes of a packet by what the kernel holds: `tracer`, over rules that iptables-save gives.

All of a family's tables are read, but only those chains are made rules that the packet gets to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from pyproxy.dataplane.iptables import names, trace_result
from pyproxy.dataplane.iptables.fixed import FILTER, NAT, TABLES
from pyproxy.dataplane.iptables.programs import Programs
from pyproxy.dataplane.iptables.rule_parser import read_rule
from pyproxy.dataplane.iptables.rules import Rule
from pyproxy.dataplane.iptables.saved import EMPTY, SavedTable, target
from pyproxy.dataplane.iptables.tracer import Machine, trace
from pyproxy.dataplane.packets import Packet, TraceResult
from pyproxy.errors import KernelError, PyproxyError, UsageError
from pyproxy.model.address import Address, Family, parse_address
from pyproxy.model.flavour import Flavour

_SEEN = re.compile(r"src=(\S+) ")
_LISTS = Path("/proc/thread-self/net/xt_recent")


class KernelChains(Mapping[str, tuple[Rule, ...]]):
    """The chains of one table that was read back; each is made rules when it is first asked for.

    Others' rules are left out: `others` are those in the kernel's own chains, and `strange` those
    in chains of ours, which somebody has changed.
    """

    def __init__(self, saved: SavedTable, family: Family) -> None:
        self._saved = saved
        self._family = family
        self._read: dict[str, tuple[Rule, ...]] = {}
        self.others: list[str] = []
        self.strange: list[str] = []

    def __getitem__(self, chain: str) -> tuple[Rule, ...]:
        if chain not in self._read:
            self._read[chain] = tuple(self._rules(chain, self._saved.chains[chain]))
        return self._read[chain]

    def __iter__(self) -> Iterator[str]:
        return iter(self._saved.chains)

    def __len__(self) -> int:
        return len(self._saved.chains)

    def _rules(self, chain: str, texts: Iterable[str]) -> Iterator[Rule]:
        for text in texts:
            if chain in self._saved.hooks and not names.is_ours(target(text)):
                self.others.append(f"{chain} {text}")
            elif rule := read_rule(text, self._family):
                yield rule
            else:
                self.strange.append(f"{chain} {text}")


class ClientLists(Mapping[str, frozenset[Address]]):
    """Who is on the kernel's lists of clients, by the list's name; each is read once."""

    def __init__(self) -> None:
        self._read: dict[str, frozenset[Address]] = {}

    def __getitem__(self, name: str) -> frozenset[Address]:
        if name not in self._read:
            try:
                text = (_LISTS / name).read_text()
            except OSError as error:
                raise KeyError(name) from error
            self._read[name] = frozenset(map(parse_address, _SEEN.findall(text)))
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return (each.name for each in _LISTS.iterdir()) if _LISTS.is_dir() else iter(())

    def __len__(self) -> int:
        return sum(1 for _ in self)


class IptablesTracer:
    """Traces through the chains that are ours, in the network namespace of the caller.

    `local_addresses` gives the addresses of this machine's interfaces. `flavour` is None for the
    one whose tables have our chains.
    """

    def __init__(
        self, local_addresses: Callable[[], Iterable[Address]], flavour: Flavour | None = None
    ) -> None:
        self._local_addresses = local_addresses
        self._flavours = (flavour,) if flavour else (Flavour.NFT, Flavour.LEGACY)

    def close(self) -> None:
        """Give back nothing: it keeps nothing open."""

    def trace(self, packet: Packet) -> TraceResult:
        """Follow a packet through the chains as they are now. Raises KernelError, UsageError."""
        saved = self._saved(packet.family)
        tables = {name: KernelChains(saved.get(name, EMPTY), packet.family) for name in TABLES}
        clients = ClientLists()
        machine = Machine(tables, frozenset(self._local_addresses()), clients)
        ways = trace(packet, machine)
        return trace_result.trace_result(packet, ways, tuple(_remarks(tables)))

    def _saved(self, family: Family) -> Mapping[str, SavedTable]:
        errors: list[PyproxyError] = []
        for flavour in self._flavours:
            try:
                saved = Programs(family, flavour).save()
            except (KernelError, UsageError) as error:
                errors.append(error)
                continue
            # kube-proxy, whose names we have, makes no such chain.
            if names.REFUSE in saved.get(FILTER, EMPTY).chains:
                return saved
        if len(errors) == len(self._flavours):
            raise errors[0]
        flavours = " or ".join(flavour.value for flavour in self._flavours)
        raise UsageError(
            f"the tables {NAT} and {FILTER} of iptables ({flavours}) have no chains of pyproxy's: "
            "trace reads what pyproxy writes in the mode iptables; run it on a node where that "
            "serves, in the host's network"
        )


def _remarks(tables: Mapping[str, KernelChains]) -> Iterator[str]:
    for name, chains in tables.items():
        for text in chains.strange:
            yield f"somebody has changed the rules: passed over in {name}: -A {text}"
    others = sum(len(chains.others) for chains in tables.values())
    if others:
        what = "1 rule of others" if others == 1 else f"{others} rules of others"
        yield f"{what} in the kernel's own chains passed over"
