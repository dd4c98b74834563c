"""Trace a packet through the kernel state: `tracer` over the rules that iptables-save prints.

Of iptables-nft, the chains on the packet's path are read over netlink. A legacy table is read as a
whole, and so are all tables if another program has changed pyproxy's chains.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from pyproxy.dataplane.iptables import trace_result
from pyproxy.dataplane.iptables.base_rules import FILTER, NAT, TABLES
from pyproxy.dataplane.iptables.rule_parser import parse_rule
from pyproxy.dataplane.iptables.rules import Rule
from pyproxy.dataplane.iptables.tracer import TraceState, trace
from pyproxy.dataplane.packets import Packet, TraceResult
from pyproxy.errors import KernelError, PyproxyError, UsageError
from pyproxy.model.address import Address, Family, parse_address
from pyproxy.model.flavour import Flavour
from pyproxy.xtables import kube_names
from pyproxy.xtables.nft_reader import NftReader
from pyproxy.xtables.nft_text import UnknownRuleError
from pyproxy.xtables.programs import Programs
from pyproxy.xtables.saved import EMPTY, SavedTable, target

# /proc/net shows the namespace of the main thread, thread-self that of the calling one.
_SEEN = re.compile(r"src=(\S+) ")
_LISTS = Path("/proc/thread-self/net/xt_recent")


class KernelChains(Mapping[str, tuple[Rule, ...]]):
    """The chains of one table that was read back; each is parsed at its first use.

    Rules of other programs are left out: `others` has those in built-in chains, and `changed` those
    in pyproxy's chains, which another program must have written.
    """

    def __init__(self, saved: SavedTable, family: Family) -> None:
        self._saved = saved
        self._family = family
        self._parsed: dict[str, tuple[Rule, ...]] = {}
        self.others: list[str] = []
        self.changed: list[str] = []

    def __getitem__(self, chain: str) -> tuple[Rule, ...]:
        if chain not in self._parsed:
            self._parsed[chain] = tuple(self._parse(chain, self._saved.chains[chain]))
        return self._parsed[chain]

    def __iter__(self) -> Iterator[str]:
        return iter(self._saved.chains)

    def __len__(self) -> int:
        return len(self._saved.chains)

    def _parse(self, chain: str, texts: Iterable[str]) -> Iterator[Rule]:
        for text in texts:
            if chain in self._saved.hooks and not kube_names.is_iptables_mode(target(text)):
                self.others.append(f"{chain} {text}")
            elif rule := parse_rule(text, self._family):
                yield rule
            else:
                self.changed.append(f"{chain} {text}")


class ClientLists(Mapping[str, frozenset[Address]]):
    """The clients on the kernel's lists of xt_recent, by the list's name; each is read once."""

    def __init__(self) -> None:
        self._read: dict[str, frozenset[Address]] = {}

    def __getitem__(self, name: str) -> frozenset[Address]:
        if name not in self._read:
            try:
                text = (_LISTS / name).read_text()
            except OSError as error:
                raise KeyError(name) from error
            # A list also has clients whose time is over, until the kernel reaps them.
            self._read[name] = frozenset(map(parse_address, _SEEN.findall(text)))
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return (each.name for each in _LISTS.iterdir()) if _LISTS.is_dir() else iter(())

    def __len__(self) -> int:
        return sum(1 for _ in self)


class IptablesTracer:
    """Traces through pyproxy's chains, in the network namespace of the caller.

    `local_addresses` returns the addresses of this node's interfaces. `flavour` is None for the
    flavour whose tables have pyproxy's chains.
    """

    def __init__(
        self, local_addresses: Callable[[], Iterable[Address]], flavour: Flavour | None = None
    ) -> None:
        self._local_addresses = local_addresses
        self._flavours = (flavour,) if flavour else (Flavour.NFT, Flavour.LEGACY)

    def close(self) -> None:
        """Do nothing: it keeps nothing open."""

    def trace(self, packet: Packet) -> TraceResult:
        """Trace a packet through the chains as they are now. Raises KernelError, UsageError."""
        if Flavour.NFT in self._flavours:
            with (
                contextlib.suppress(KernelError, UnknownRuleError),
                contextlib.closing(NftReader()) as reader,
            ):
                read = {name: reader.table(packet.family, name) for name in TABLES}
                if kube_names.REFUSE in read[FILTER].chains:
                    return self._trace(packet, read)
        return self._trace(packet, self._saved(packet.family))

    def _trace(self, packet: Packet, saved: Mapping[str, SavedTable]) -> TraceResult:
        tables = {name: KernelChains(saved.get(name, EMPTY), packet.family) for name in TABLES}
        clients = ClientLists()
        state = TraceState(tables, frozenset(self._local_addresses()), clients)
        paths = trace(packet, state)
        return trace_result.trace_result(packet, paths, tuple(_remarks(tables)))

    def _saved(self, family: Family) -> Mapping[str, SavedTable]:
        errors: list[PyproxyError] = []
        for flavour in self._flavours:
            try:
                saved = Programs(family, flavour).save()
            except (KernelError, UsageError) as error:
                errors.append(error)
                continue
            # kube-proxy, whose names pyproxy uses, has no chain of this name.
            if kube_names.REFUSE in saved.get(FILTER, EMPTY).chains:
                return saved
        if len(errors) == len(self._flavours):
            raise errors[0]
        flavours = " or ".join(flavour.value for flavour in self._flavours)
        raise UsageError(
            f"the tables {NAT} and {FILTER} of iptables ({flavours}) have no chains of pyproxy's: "
            "run trace in the host's network of a node that pyproxy serves in iptables mode"
        )


def _remarks(tables: Mapping[str, KernelChains]) -> Iterator[str]:
    for name, chains in tables.items():
        for text in chains.changed:
            yield f"ignored a rule that pyproxy did not write, in table {name}: -A {text}"
    others = sum(len(chains.others) for chains in tables.values())
    if others:
        rules = "1 rule" if others == 1 else f"{others} rules"
        yield f"ignored {rules} of other programs in built-in chains"
