"""The verdicts of other programs' rules on the packets of a Service.

A path's packets are evaluated hook by hook, with the chains that are registered there, in the order
of their priorities. pyproxy's own tables and chains are left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import closing
from pathlib import Path

import msgspec

from pyproxy.errors import KernelError
from pyproxy.hostnet.devices import Devices, read_devices
from pyproxy.hostnet.firewall.bits import Bits, DoubtKind, doubt, join_doubts, mask_and_xor, number
from pyproxy.hostnet.firewall.evaluator import (
    Budget,
    Certainty,
    ChainResult,
    Finding,
    evaluate,
)
from pyproxy.hostnet.firewall.hook_packet import STATUS_SNAT_DONE, Hook, HookPacket, Host
from pyproxy.hostnet.firewall.ipsets import IpSets
from pyproxy.hostnet.firewall.legacy_tables import LegacyTable, read_legacy_tables
from pyproxy.hostnet.firewall.nft_tables import NFPROTO_BRIDGE, BaseChain, NftTables
from pyproxy.hostnet.firewall.own_chains import OwnChains, is_own
from pyproxy.hostnet.firewall.verdicts import Action, Chain, Chains
from pyproxy.hostnet.firewall.ways import MASQUERADE, TRANSLATION, Stage, way, way_back, way_on
from pyproxy.hostnet.not_read import NotRead
from pyproxy.hostnet.packet import MarkedPacket, PacketPath, ServicePaths
from pyproxy.model.address import Address, Family, Mark, family_of

MOST_FINDINGS = 50
_NAT_TABLES = frozenset({"ip nat", "ip6 nat", "iptables-legacy nat", "ip6tables-legacy nat"})
"""The tables that pyproxy's iptables mode shares with other programs."""


_ROUTED = (Hook.INPUT, Hook.FORWARD, Hook.POSTROUTING)


class Stopped(msgspec.Struct, frozen=True):
    """A finding on a path: of its first packet, before or after translation, or of the reply.

    `related` are the chains that the base chain led the packet to. `is_later` is true if only
    later packets of the client meet it, such as the ACK of TCP's handshake.
    """

    finding: Finding
    is_reply: bool
    is_translated: bool
    path: PacketPath
    related: tuple[str, ...] = ()
    is_later: bool = False

    @property
    def rule(self) -> tuple[Action, str, str, str]:
        """The verdict, and the table, chain and place of its rule."""
        found = self.finding
        return found.action, found.table, found.chain, found.place


class FirewallFacts(msgspec.Struct, frozen=True):
    """The findings on all paths, and the base chains of other programs that packets met.

    `chains` are names of a table and a chain each, `entered` the chains that these led to. `marked`
    are packets on which these chains set a mark before routing, or may do so. `unread` are parts
    that were not read, each with the reason.
    """

    findings: tuple[Stopped, ...] = ()
    chains: tuple[tuple[str, str], ...] = ()
    entered: tuple[tuple[str, str], ...] = ()
    unread: tuple[str, ...] = ()
    marked: tuple[MarkedPacket, ...] = ()


def read_firewalls(paths: ServicePaths, devices: Devices) -> FirewallFacts | NotRead:
    """Evaluate the rules that the packets of paths meet. Blocks; raises KernelError."""
    known = devices if devices.links else read_devices()
    with closing(NftTables()) as tables, closing(IpSets()) as sets:
        return _Reader(tables, sets, known).read(paths)


class Marks(msgspec.Struct, frozen=True):
    """The marks of a packet and of its connection, which rules at one hook set for the next.

    `routed` is the mark by which the kernel last routed a packet that this node sends.
    """

    packet: Bits
    connection: Bits
    routed: Bits = number(0)

    def put_on(self, packet: HookPacket, own: int) -> HookPacket:
        """Return a packet with these marks; pyproxy's `own` bits are as the packet has them."""
        bits = number(own).value
        mark = mask_and_xor(self.packet, 0xFFFFFFFF & ~bits, packet.mark.value & bits)
        entry = packet.connection
        if entry is not None and entry.mark != self.connection:
            entry = msgspec.structs.replace(entry, mark=self.connection)
        return msgspec.structs.replace(packet, mark=mark, connection=entry)


class _Registered(msgspec.Struct, frozen=True, eq=False):
    """A base chain at a hook, and how to read it when a packet meets it."""

    priority: int
    kind: str
    table: str
    name: str
    chains: Chains
    load: Callable[[], Chain]
    is_at: Callable[[Hook, str], bool]
    family: Family | None = None
    bridge: bool = False


class _Reader:
    """The chains of other programs, read as packets meet them."""

    def __init__(self, tables: NftTables, sets: IpSets, devices: Devices) -> None:
        self._tables = tables
        self._devices = devices
        self._host = _host(devices, sets)
        self._unread: list[str] = []
        self._marked: list[MarkedPacket] = []
        self._loaded: dict[int, Chain] = {}
        self._results: dict[tuple[int, HookPacket], ChainResult] = {}
        self._own_nat, self._own_snat = TRANSLATION, MASQUERADE
        self._shared_nat: frozenset[str] = frozenset()
        self._chains: list[_Registered] = []
        self._met: set[int] = set()
        self._budget = Budget()
        self._entered: dict[tuple[str, str], None] = {}

    def read(self, paths: ServicePaths) -> FirewallFacts | NotRead:
        """Evaluate all paths."""
        if paths.owns_ipvs:
            return NotRead("the packets of ipvs mode take another way through the hooks")
        bases, complete = self._tables.base_chains()
        if not complete:
            self._unread.append("the tables of nf_tables have too many base chains")
        self._chains = [self._registered(base) for base in bases if not is_own(base)]
        own_nat = [b.priority for b in bases if is_own(b) and b.kind == "nat"]
        self._own_nat = min(own_nat, default=TRANSLATION)
        self._own_snat = max(own_nat, default=MASQUERADE)
        self._shared_nat = frozenset() if own_nat else _NAT_TABLES
        for family in paths.families:
            try:
                for table in read_legacy_tables(family):
                    self._chains += self._registered_legacy(table)
            except (KernelError, OSError) as error:
                self._unread.append(f"legacy tables of {family.label}: {error}")
        self._chains.sort(key=lambda each: each.priority)
        found = list(self._all(paths.paths))
        met = [self._chains[index] for index in sorted(self._met)]
        return FirewallFacts(
            findings=tuple(found[:MOST_FINDINGS]),
            chains=tuple(dict.fromkeys((each.table, each.name) for each in met)),
            entered=tuple(self._entered),
            unread=tuple(self._unread),
            marked=tuple(self._marked),
        )

    def _registered(self, base: BaseChain) -> _Registered:
        table = self._tables.table(base.family, base.table)
        families = {2: Family.IPV4, 10: Family.IPV6}
        return _Registered(
            base.priority,
            base.kind,
            base.table_name,
            base.name,
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
                {"nat": "nat", "mangle": "route"}.get(table.name, "filter"),
                table.label,
                hook.name,
                OwnChains(table, table.name == "nat"),
                lambda hook=hook: table.base_chain(hook),  # type: ignore[misc]
                lambda at, _, hook=hook: at is hook,  # type: ignore[misc]
                table.family,
            )

    def _all(self, paths: Sequence[PacketPath]) -> Iterator[Stopped]:
        found, passed = [], []
        for path in paths:
            stopped, mark = self._first(path)
            found += stopped
            if mark is not None:
                known = {(each.rule, each.finding.certainty) for each in stopped}
                passed.append((path, mark, known))
        yield from found
        # Behind the others, because the rules that are evaluated are limited.
        for path, mark, known in passed:
            yield from self._later(path, mark, known)

    def _first(self, path: PacketPath) -> tuple[list[Stopped], Bits | None]:
        """Evaluate the first packet and its reply.

        Return the findings, and the connection's mark, None if the packets certainly end.
        """
        own = self._own_address(path)
        found, mark = self._walk(way(path, self._host, own), path, number(0))
        if mark is None:
            return found, None
        replies, mark = self._walk(way_back(path, self._host, own, mark), path, mark)
        return found + replies, mark

    def _later(
        self, path: PacketPath, mark: Bits, known: Set[tuple[object, Certainty]]
    ) -> Iterator[Stopped]:
        """Yield the findings of a later packet that the first one or its reply do not have."""
        rules = {rule for rule, _ in known}
        stages = way_on(path, self._host, self._own_address(path), mark)
        for each in self._walk(stages, path, mark)[0]:
            certainty = each.finding.certainty
            if each.rule in rules and certainty is not Certainty.CERTAIN:
                continue
            if (each.rule, certainty) not in known:
                yield msgspec.structs.replace(each, is_later=True)

    def _walk(
        self, stages: Iterator[Stage], path: PacketPath, mark: Bits
    ) -> tuple[list[Stopped], Bits | None]:
        marks, found, routed = Marks(number(0), mark), list[Stopped](), False
        for stage in stages:
            if stage.is_rerouted:
                marks = msgspec.structs.replace(marks, routed=marks.packet)
            routed = routed or self._routed(stage, path, marks)
            marks, stopped, ended = self._stage(stage, path, marks)
            found += stopped
            if ended:
                return found, None
        return found, marks.connection

    def _routed(self, stage: Stage, path: PacketPath, marks: Marks) -> bool:
        """Note the mark of a packet that the kernel has just routed; return whether it has."""
        packet = stage.packet
        if stage.bridge or packet.hook not in _ROUTED:
            return False
        own = path.leaving.mark if packet.is_new else Mark(0)
        if packet.from_process:
            marks = msgspec.structs.replace(marks, packet=marks.routed)
        mark = marks.put_on(packet, path.leaving.mark).mark
        found = Mark(int.from_bytes(mark.data(), "little"))
        unknown = Mark(int.from_bytes((~mark.known & 0xFFFFFFFF).to_bytes(4, "big"), "little"))
        marked = MarkedPacket(path, found, packet.is_reply, unknown)
        if (unknown or found != own) and marked not in self._marked:
            self._marked.append(marked)
        return True

    def _own_address(self, path: PacketPath) -> Address | None:
        """Return this node's address that masquerading would use, None if it is unknown."""
        link = self._devices.named(path.leaving.out_device or "")
        index, family = link.index if link else 0, path.leaving.family
        return next(
            (
                address
                for address, device in self._devices.by_address.items()
                # Packets that are forwarded never get a link-local source.
                if device == index and family_of(address) is family and address[:2] != b"\xfe\x80"
            ),
            None,
        )

    def _stage(
        self, stage: Stage, path: PacketPath, marks: Marks
    ) -> tuple[Marks, list[Stopped], bool]:
        packet = marks.put_on(stage.packet, path.leaving.mark)
        stopped: list[Stopped] = []
        routed = marks.routed
        for number_, chain in enumerate(self._chains):
            if not self._meets(chain, stage):
                continue
            entry = packet.connection
            if stage.masquerades and entry and entry.status & STATUS_SNAT_DONE:
                break
            self._met.add(number_)
            result = self._evaluate(number_, chain, packet)
            self._entered |= {(chain.table, name): None for name in result.entered}
            findings = [each for each in result.findings if self._counts(each, chain, stage)]
            stopped += [
                Stopped(
                    self._ordered(each, chain, stage),
                    packet.is_reply,
                    stage.is_translated,
                    path,
                    result.entered,
                )
                for each in findings
            ]
            ended = not result.passes or any(e.action is Action.NOTRACK for e in findings)
            # A drop of some packets does not end the way of the others.
            if ended and any(s.finding.certainty is Certainty.CERTAIN for s in stopped):
                return marks, stopped, True
            # A mark of another chain does not change the route of what this node sends.
            if chain.kind == "route" and result.packet.mark != packet.mark:
                routed = result.packet.mark
            packet = result.packet
        entry = packet.connection
        connection = entry.mark if entry else marks.connection
        return Marks(packet.mark, connection, routed), stopped, False

    def _meets(self, chain: _Registered, stage: Stage) -> bool:
        packet = stage.packet
        device = packet.out_interface if packet.hook is Hook.EGRESS else packet.in_interface
        if chain.bridge != stage.bridge or (chain.family or packet.family) is not packet.family:
            return False
        if stage.bridge:
            link = self._devices.named(packet.bridge_in or packet.bridge_out)
            if link is None or link.kind != "bridge":
                return False
        if not any(chain.is_at(packet.hook, each) for each in self._devices_at(packet, device)):
            return False
        if chain.kind == "nat":
            return self._meets_nat(chain, stage)
        if stage.translates or stage.masquerades:
            return False
        return stage.low <= chain.priority < stage.high

    def _meets_nat(self, chain: _Registered, stage: Stage) -> bool:
        # nat chains run at the priority of nat, in the order of their own priorities, up to the
        # first that translates.
        if stage.packet.hook in (Hook.PREROUTING, Hook.OUTPUT):
            return stage.translates and chain.priority <= self._own_nat
        if stage.packet.hook is Hook.POSTROUTING:
            before = chain.priority <= self._own_snat or not stage.packet.own_mark
            return stage.masquerades and before
        return stage.packet.is_new

    def _devices_at(self, packet: HookPacket, device: str | None) -> Sequence[str]:
        """Return the devices whose own hooks a packet may pass: a bridge's ports are among them."""
        link = self._devices.named(device or "")
        if link is None or packet.hook not in (Hook.INGRESS, Hook.EGRESS):
            return (device or "",)
        links = self._devices.links.values()
        ports = [each.name for each in links if each.master == link.index]
        return (link.name, *ports) if link.kind == "bridge" else (link.name,)

    def _evaluate(self, index: int, chain: _Registered, packet: HookPacket) -> ChainResult:
        key = (index, packet)
        if key not in self._results:
            if index not in self._loaded:
                self._loaded[index] = chain.load()
            self._results[key] = evaluate(self._loaded[index], chain.chains, packet, self._budget)
        return self._results[key]

    def _counts(self, finding: Finding, chain: _Registered, stage: Stage) -> bool:
        # Behind pyproxy's translation the kernel does not translate a second time.
        if finding.action is Action.TRANSLATE and chain.kind == "nat":
            return stage.translates
        return True

    def _ordered(self, finding: Finding, chain: _Registered, stage: Stage) -> Finding:
        # Of chains with one priority the kernel runs the newest first, and does not tell which.
        packet = stage.packet
        device = packet.in_interface or packet.out_interface or ""
        at_device = packet.hook in (Hook.INGRESS, Hook.EGRESS)
        if at_device and not chain.is_at(packet.hook, device):
            # A port of the bridge, through which some of the packets pass.
            some = doubt(DoubtKind.CLIENT, "the port of the bridge")
            return msgspec.structs.replace(finding, doubts=join_doubts(finding.doubts, some))
        same = (stage.translates and chain.priority == self._own_nat) or (
            stage.masquerades and packet.own_mark and chain.priority == self._own_snat
        )
        if same and chain.table not in self._shared_nat:
            unclear = doubt(DoubtKind.UNREADABLE, "the order of chains with the same priority")
            return msgspec.structs.replace(finding, doubts=join_doubts(finding.doubts, unclear))
        return finding


def _host(devices: Devices, sets: IpSets) -> Host:
    indexes = {link.name: link.index for link in devices.links.values()}
    groups = {link.name: link.group for link in devices.links.values()}
    owners = {address: devices.name(index) for address, index in devices.by_address.items()}
    return Host(indexes, frozenset(owners), _bridge_families(), sets.match, groups, owners)


def _bridge_families() -> frozenset[Family]:
    """Return the families whose bridged packets meet the hooks of IP (br_netfilter)."""
    found = set()
    for family, name in ((Family.IPV4, "ip"), (Family.IPV6, "ip6")):
        with contextlib.suppress(OSError):
            if Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}tables").read_text().strip() != "0":
                found.add(family)
    return frozenset(found)
