"""What the rules of other programs do to the packets of a Service.

A path's packets are evaluated hook by hook, with the chains that are registered there, in the order
of their priorities. pyproxy's own tables and chains are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import msgspec

from pyproxy.errors import KernelError
from pyproxy.hostnet.firewall.bits import Bits, DoubtKind, doubt, join_doubts, number
from pyproxy.hostnet.firewall.devices import Devices, read_devices
from pyproxy.hostnet.firewall.evaluator import ChainResult, Finding, evaluate
from pyproxy.hostnet.firewall.hook_packet import Hook, HookPacket
from pyproxy.hostnet.firewall.legacy_tables import LegacyTable, read_legacy_tables
from pyproxy.hostnet.firewall.nft_tables import NFPROTO_BRIDGE, BaseChain, NftTables
from pyproxy.hostnet.firewall.own_chains import OwnChains, is_own_table
from pyproxy.hostnet.firewall.verdicts import Action, Chain, Chains
from pyproxy.hostnet.firewall.ways import TRANSLATION, Stage, way, way_back
from pyproxy.hostnet.not_read import NotRead
from pyproxy.hostnet.packet import PacketPath, ServicePaths
from pyproxy.model.address import Family

MOST_FINDINGS = 50
_NAT_TABLES = frozenset({"ip nat", "ip6 nat", "iptables-legacy nat", "ip6tables-legacy nat"})
"""The tables that pyproxy's iptables mode shares with other programs."""


class Stopped(msgspec.Struct, frozen=True):
    """A finding on the way of packets: at a hook, of the first packet or of its reply.

    `path` is the first path that meets it, `paths` the number of all.
    """

    finding: Finding
    hook: str
    is_reply: bool
    path: PacketPath
    paths: int = 1


class FirewallFacts(msgspec.Struct, frozen=True):
    """What the packets met: the findings, and the number of chains of other programs.

    `unread` are parts that were not read, each with the reason.
    """

    findings: tuple[Stopped, ...] = ()
    chains: int = 0
    unread: tuple[str, ...] = ()


def read_firewalls(paths: ServicePaths) -> FirewallFacts | NotRead:
    """Evaluate the rules that the packets of paths meet. Blocks; raises KernelError."""
    with closing(NftTables()) as tables:
        return _Reader(tables, read_devices()).read(paths)


class _Registered(msgspec.Struct, frozen=True, eq=False):
    """A base chain at a hook, and how to read it when a packet meets it."""

    priority: int
    kind: str
    table: str
    chains: Chains
    load: Callable[[], Chain]
    is_at: Callable[[Hook, str], bool]
    family: Family | None = None
    bridge: bool = False


class _Reader:
    """The chains of other programs, read as packets meet them."""

    def __init__(self, tables: NftTables, devices: Devices) -> None:
        self._tables = tables
        self._devices = devices
        self._unread: list[str] = []
        self._loaded: dict[int, Chain] = {}
        self._results: dict[tuple[int, HookPacket], ChainResult] = {}
        self._own_nat = TRANSLATION
        self._shared_nat: frozenset[str] = frozenset()
        self._chains: list[_Registered] = []
        self._met: set[int] = set()

    def read(self, paths: ServicePaths) -> FirewallFacts | NotRead:
        """Evaluate all paths."""
        bases, complete = self._tables.base_chains()
        if not complete:
            self._unread.append("the tables of nf_tables have too many base chains")
        if any(base.table == "pyproxy-ipvs" for base in bases):
            return NotRead("the packets of ipvs mode take another way through the hooks")
        self._chains = [self._registered(base) for base in bases if not is_own_table(base)]
        own_nat = [b.priority for b in bases if is_own_table(b) and b.kind == "nat"]
        self._own_nat = min(own_nat, default=TRANSLATION)
        self._shared_nat = frozenset() if own_nat else _NAT_TABLES
        for family in paths.families:
            try:
                for table in read_legacy_tables(family):
                    self._chains += self._registered_legacy(table)
            except (KernelError, OSError) as error:
                self._unread.append(f"legacy tables of {family.label}: {error}")
        self._chains.sort(key=lambda each: each.priority)
        found: dict[tuple[Finding, bool], Stopped] = {}
        for path in paths.paths:
            for stopped in self._path(path):
                key = (stopped.finding, stopped.is_reply)
                if key in found:
                    more = found[key].paths + 1
                    found[key] = msgspec.structs.replace(found[key], paths=more)
                elif len(found) < MOST_FINDINGS:
                    found[key] = stopped
        return FirewallFacts(tuple(found.values()), len(self._met), tuple(self._unread))

    def _registered(self, base: BaseChain) -> _Registered:
        table = self._tables.table(base.family, base.table)
        families = {2: Family.IPV4, 10: Family.IPV6}
        return _Registered(
            base.priority,
            base.kind,
            base.table_name,
            OwnChains(table, base.kind == "nat"),
            lambda: self._tables.load(base),
            base.is_at,
            families.get(base.family),
            base.family == NFPROTO_BRIDGE,
        )

    def _registered_legacy(self, table: LegacyTable) -> Iterator[_Registered]:
        for hook in table.hooks:
            yield _Registered(
                table.priority(hook),
                "nat" if table.name == "nat" else "filter",
                table.label,
                OwnChains(table, table.name == "nat"),
                lambda hook=hook: table.base_chain(hook),  # type: ignore[misc]
                lambda at, _, hook=hook: at is hook,  # type: ignore[misc]
                table.family,
            )

    def _path(self, path: PacketPath) -> Iterator[Stopped]:
        out = path.leaving.out_device
        own = self._devices.own_address(out, path.leaving.family) if out else None
        mark = number(0)
        for stage in way(path, self._devices.host, own):
            mark, stopped, ended = self._stage(stage, path, mark)
            yield from stopped
            if ended:
                return
        for stage in way_back(path, self._devices.host, own, mark):
            _, stopped, ended = self._stage(stage, path, mark)
            yield from stopped
            if ended:
                return

    def _stage(
        self, stage: Stage, path: PacketPath, mark: Bits
    ) -> tuple[Bits, list[Stopped], bool]:
        packet = _with_mark(stage.packet, mark)
        stopped: list[Stopped] = []
        for number_, chain in enumerate(self._chains):
            if not self._meets(chain, stage):
                continue
            self._met.add(number_)
            result = self._evaluate(number_, chain, packet)
            findings = [each for each in result.findings if self._counts(each, chain, stage)]
            stopped += [
                Stopped(self._ordered(each, chain, stage), packet.hook.label, packet.is_reply, path)
                for each in findings
            ]
            if not result.passes or any(each.action is Action.NOTRACK for each in findings):
                return mark, stopped, bool(findings)
            packet = result.packet
        entry = packet.connection
        return entry.mark if entry else mark, stopped, False

    def _meets(self, chain: _Registered, stage: Stage) -> bool:
        packet = stage.packet
        device = packet.out_interface if packet.hook is Hook.EGRESS else packet.in_interface
        if chain.bridge != stage.bridge or (chain.family or packet.family) is not packet.family:
            return False
        if stage.bridge:
            bridges = self._devices.bridges
            if (packet.in_interface or packet.out_interface or "") not in bridges:
                return False
        if not chain.is_at(packet.hook, device or ""):
            return False
        if chain.kind == "nat" and packet.hook in (Hook.PREROUTING, Hook.OUTPUT):
            # nat chains run at the priority of nat, in the order of their own priorities.
            return stage.translates and chain.priority <= self._own_nat
        if stage.translates or (chain.kind == "nat" and packet.is_reply):
            return False
        return stage.low <= chain.priority < stage.high

    def _evaluate(self, index: int, chain: _Registered, packet: HookPacket) -> ChainResult:
        key = (index, packet)
        if key not in self._results:
            if index not in self._loaded:
                self._loaded[index] = chain.load()
            self._results[key] = evaluate(self._loaded[index], chain.chains, packet)
        return self._results[key]

    def _counts(self, finding: Finding, chain: _Registered, stage: Stage) -> bool:
        # Behind pyproxy's translation the kernel does not translate a second time.
        if finding.action is Action.TRANSLATE and chain.kind == "nat":
            return stage.translates
        return True

    def _ordered(self, finding: Finding, chain: _Registered, stage: Stage) -> Finding:
        # Of chains with one priority the kernel runs the newest first, and does not tell which.
        same = stage.translates and chain.priority == self._own_nat
        if same and chain.table not in self._shared_nat:
            unclear = doubt(DoubtKind.UNREADABLE, "the order of chains with the same priority")
            return msgspec.structs.replace(finding, doubts=join_doubts(finding.doubts, unclear))
        return finding


def _with_mark(packet: HookPacket, mark: Bits) -> HookPacket:
    entry = packet.connection
    if entry is None or entry.mark == mark:
        return packet
    return msgspec.structs.replace(packet, connection=msgspec.structs.replace(entry, mark=mark))
