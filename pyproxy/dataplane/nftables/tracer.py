"""What the table does with a packet, worked out from its rows: no kernel, no packet, no policy.

The fixed rules' meaning is written down here a second time, by hand, so that a test or a person
can hold it against what the kernel does. Packets pass the hooks in this order: source ranges,
translation, then forward, or input for this machine's own endpoints, and postrouting. What the
machine sends itself passes output in forward's place; where it sends to itself it comes in again.

Nothing in the table looks at source ports, so a packet here has none.
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Iterable
from fractions import Fraction

import msgspec
from msgspec.structs import replace

from pyproxy.dataplane.nft import schema as nft
from pyproxy.dataplane.nft.lookup import Element, Lookups, find_element
from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nft.schema import SetKind
from pyproxy.dataplane.nftables import chains, schema
from pyproxy.dataplane.nftables.base_rules import NftablesOptions
from pyproxy.dataplane.packets import (
    Delivered,
    Dropped,
    DropReason,
    Masquerade,
    Packet,
    Rejected,
    RejectWith,
    TracePath,
    TraceResult,
    TraceStep,
    Untouched,
    Verdict,
)
from pyproxy.model.address import Address, Backend, Family, Port, Protocol, family_of, parse_network
from pyproxy.netlink.elements import DROP, Tag

_SPLITS = {f"split{family.value}": family for family in Family}
_PICK = re.compile(r"(masq-)?(affinity-)?(cluster|local)([46])-([0-9]+)")
_LOOPBACK = parse_network("127.0.0.0/8")
_INDEX = struct.Struct("=I")
_CERTAIN = Fraction(1)


class Did(enum.Enum):
    """What a rule or an element did."""

    SHIELDED = "nobody else may send to a loopback address"
    ADMITTED = "a source range lets it in"
    KEPT_OUT = "no source range lets it in"
    MARKED = "to be masqueraded"
    WENT_ON = "goes on where its frontend says"
    VERDICT_DROP = "dropped where its frontend says"
    RETURNED = "the client had this endpoint before"
    PICKED = "translated to a random endpoint"
    MISSED = "every random number met an empty slot"
    NO_ENDPOINT_SERVICES = "nobody serves this frontend"
    NO_SUCH_PORT = "nobody serves this port of the address"
    LEARNED = "the client will come back to this endpoint"
    UNMARKED = "masqueraded by its mark"
    HAIRPINNED = "masqueraded, for the endpoint would answer itself"
    KNOWN = "goes the way of the first packet of its connection"


class Step(msgspec.Struct, frozen=True):
    """One thing that happened, in which chain, and the element that made it happen if one did."""

    chain: str
    did: Did
    element: Element | None = None

    def trace_step(self) -> TraceStep:
        """Tell it in words."""
        return TraceStep(self.chain, self.did.value, str(self.element or ""))


class Way(msgspec.Struct, frozen=True):
    """One way through the table: with what probability it is taken, and where it ends.

    `learned` is the element of the affinity map that the packet adds, or whose timeout it renews.
    """

    verdict: Verdict
    probability: Fraction
    steps: tuple[Step, ...]
    learned: Element | None = None


class Trace(msgspec.Struct, frozen=True):
    """All that may become of a packet; the ways' probabilities add up to 1."""

    packet: Packet
    ways: tuple[Way, ...]

    def verdicts(self) -> dict[Verdict, Fraction]:
        """Give the probability of each verdict."""
        found: dict[Verdict, Fraction] = {}
        for way in self.ways:
            found[way.verdict] = found.get(way.verdict, Fraction(0)) + way.probability
        return found

    def backends(self) -> frozenset[Backend]:
        """Give every endpoint that the packet may be delivered to."""
        verdicts = (way.verdict for way in self.ways)
        return frozenset(verdict.backend for verdict in verdicts if isinstance(verdict, Delivered))

    def result(self, remarks: tuple[str, ...] = ()) -> TraceResult:
        """Tell it in the words of every proxy mode."""
        paths = (
            TracePath(way.verdict, way.probability, tuple(map(Step.trace_step, way.steps)))
            for way in self.ways
        )
        return TraceResult(self.packet, tuple(paths), remarks)

    def __str__(self) -> str:
        return str(self.result())


class NftablesView(msgspec.Struct, frozen=True):
    """What the tracer sees of the kernel: elements, options, and what packets taught.

    `learned` holds the affinity maps, `local` the addresses of this node's interfaces.
    """

    table: Lookups
    options: NftablesOptions
    local: frozenset[Address] = frozenset()
    learned: Lookups = {}

    def meet(self, kind: SetKind, family: Family, key: bytes) -> Element | None:
        """Return the element that a key is in."""
        return find_element(self.learned if kind.learned else self.table, kind, family, key)

    def is_from_pod(self, packet: Packet) -> bool | None:
        """Return whether the rules take a packet for a pod's; None where they do not test it."""
        if wanted := self.options.pod_interface:
            prefix = wanted.removesuffix("*")
            if prefix != wanted:
                return packet.interface.startswith(prefix)
            return packet.interface == wanted
        family = family_of(packet.source)
        if family in self.options.pod_families:
            return self.meet(nft.PODS, family, packet.source) is not None
        return None


class _Walk(msgspec.Struct, frozen=True):
    """How far one way has come; `verdict` ends it."""

    destination: Address
    port: Port
    probability: Fraction = _CERTAIN
    steps: tuple[Step, ...] = ()
    marked: bool = False
    translated: bool = False
    masquerade: Masquerade = Masquerade.NONE
    learned: Element | None = None
    verdict: Verdict | None = None

    def went(self, chain: str, did: Did, element: Element | None = None) -> _Walk:
        return replace(self, steps=(*self.steps, Step(chain, did, element)))


def trace(packet: Packet, machine: NftablesView) -> Trace:
    """Follow a packet through the table. Raises ValueError for a foreign verdict.

    A packet that the machine sends to itself is held against the source ranges once more when it
    comes in; where it was masqueraded meanwhile the ranges still see its first address here.
    """
    start = _Walk(packet.destination, packet.port)
    if not packet.new:
        walks = [start.went("conntrack", Did.KNOWN)]
    else:
        walks = _Tracer(packet, machine).follow(start)
    return Trace(packet, tuple(map(_finished, walks)))


def _finished(walk: _Walk) -> Way:
    verdict = walk.verdict
    if verdict is None:
        verdict = Untouched(walk.masquerade)
        if walk.translated:
            backend = Backend(walk.destination + walk.port.to_bytes(2, "big"))
            verdict = Delivered(backend, walk.masquerade)
    return Way(verdict, walk.probability, walk.steps, walk.learned)


class _Tracer:
    """One packet before one machine."""

    def __init__(self, packet: Packet, machine: NftablesView) -> None:
        self._packet = packet
        self._machine = machine
        self._family = family_of(packet.destination)
        self._frontend = frontend_key(packet.destination, packet.protocol, packet.port)
        self._from_pod = machine.is_from_pod(packet)

    def follow(self, start: _Walk) -> list[_Walk]:
        sent_here = not self._packet.interface
        guard = "filter-output-before" if sent_here else "filter-prerouting"
        begun = self._source_ranges(self._shield(start, guard), guard)
        if begun.verdict is not None:
            return [begun]
        return [
            self._send(walk) if sent_here else self._receive(walk) for walk in self._services(begun)
        ]

    def _send(self, walk: _Walk) -> _Walk:
        walk = self._refuse(walk, "filter-output", no_such_port=True)
        if walk.verdict is None:
            walk = self._postrouting(walk)
            if self._is_local(walk.destination):
                walk = self._source_ranges(walk, "filter-prerouting")
                walk = self._input(walk)
        return walk

    def _receive(self, walk: _Walk) -> _Walk:
        if self._is_local(walk.destination):
            return self._input(walk)
        walk = self._refuse(walk, "filter-forward", no_such_port=True)
        return self._postrouting(walk)

    def _input(self, walk: _Walk) -> _Walk:
        return self._refuse(self._learn(walk, "learn-input"), "filter-input", no_such_port=False)

    def _postrouting(self, walk: _Walk) -> _Walk:
        walk = self._learn(walk, "learn-postrouting")
        if walk.verdict is not None:
            return walk
        chain = "masquerading"
        if walk.marked:
            return replace(walk.went(chain, Did.UNMARKED), masquerade=Masquerade.MARK)
        pair = self._packet.source + walk.destination
        if walk.translated and (met := self._meet(nft.HAIRPIN, pair)):
            return replace(walk.went(chain, Did.HAIRPINNED, met), masquerade=Masquerade.HAIRPIN)
        return walk

    def _shield(self, walk: _Walk, hook: str) -> _Walk:
        shielded = self._machine.options.shield_loopback and walk.destination in _LOOPBACK
        if not shielded or self._packet.interface in ("", "lo"):
            return walk
        return replace(walk.went(hook, Did.SHIELDED), verdict=Dropped(DropReason.LOOPBACK))

    def _source_ranges(self, walk: _Walk, hook: str) -> _Walk:
        key = self._key(walk)
        guarded = self._meet(nft.SOURCE_RANGE_FRONTENDS, key)
        if walk.verdict is not None or guarded is None:
            return walk
        if met := self._meet(nft.SOURCES, key + self._packet.source):
            return walk.went(hook, Did.ADMITTED, met)
        return replace(
            walk.went(hook, Did.KEPT_OUT, guarded), verdict=Dropped(DropReason.SOURCE_RANGES)
        )

    def _refuse(self, walk: _Walk, hook: str, *, no_such_port: bool) -> _Walk:
        if walk.verdict is not None:
            return walk
        did, met = (
            Did.NO_ENDPOINT_SERVICES,
            self._meet(nft.NO_ENDPOINT_SERVICES, self._key(walk)),
        )
        if met is None and no_such_port:
            did, met = Did.NO_SUCH_PORT, self._meet(nft.CLUSTER_IPS, walk.destination)
        if met is None:
            return walk
        reject_with = (
            RejectWith.TCP_RESET if self._packet.protocol is Protocol.TCP else RejectWith.ICMP
        )
        return replace(walk.went(hook, did, met), verdict=Rejected(reject_with))

    def _learn(self, walk: _Walk, hook: str) -> _Walk:
        # An update leaves the data of an element that is there alone, so the first one counts.
        sticky = self._meet(schema.AFFINITY_FRONTENDS, self._frontend)
        if walk.verdict is not None or walk.learned is not None or sticky is None:
            return walk
        endpoint = walk.destination + walk.port.to_bytes(2, "big") + b"\0\0"
        if self._meet(schema.AFFINITY_ENDPOINTS, self._frontend + endpoint) is None:
            return walk
        key = self._packet.source + self._frontend
        learned = Element(schema.AFFINITY, self._family, key, endpoint)
        return replace(walk.went(hook, Did.LEARNED, learned), learned=learned)

    def _services(self, walk: _Walk) -> Iterable[_Walk]:
        to_cluster_ip = self._meet(nft.CLUSTER_IPS, walk.destination)
        if to_cluster_ip and (self._machine.options.masquerade_all or self._from_pod is False):
            walk = _mark(walk, "services", to_cluster_ip)
        mapped = self._meet(schema.SERVICES, self._frontend)
        return self._go(walk, "services", mapped) if mapped else [walk]

    def _split(self, walk: _Walk, chain: str) -> Iterable[_Walk]:
        insiders = self._meet(schema.INTERNAL_SERVICES, self._frontend)
        if self._from_pod and insiders:
            return self._go(walk, chain, insiders)
        if self._is_local(self._packet.source):
            walk = _mark(walk, chain)
            if insiders:
                return self._go(walk, chain, insiders)
        outsiders = self._meet(schema.EXTERNAL_SERVICES, self._frontend)
        return self._go(walk, chain, outsiders) if outsiders else [walk]

    def _go(self, walk: _Walk, chain: str, mapped: Element) -> Iterable[_Walk]:
        target = mapped.value.target if isinstance(mapped.value, Tag) else ""
        if target == DROP:
            return [
                replace(
                    walk.went(chain, Did.VERDICT_DROP, mapped), verdict=Dropped(DropReason.POLICY)
                )
            ]
        walk = walk.went(chain, Did.WENT_ON, mapped)
        if target in _SPLITS:
            return self._split(walk, target) if _SPLITS[target] is self._family else [walk]
        found = _PICK.fullmatch(target)
        if found is None:
            raise ValueError(f"{mapped}: pyproxy makes no chain {target!r}")
        masquerade, sticky, which, family, count = found.groups()
        if masquerade:
            walk = _mark(walk, target)
        if int(family) != self._family:
            return [walk]
        client = self._packet.source + self._frontend
        if sticky and (met := self._meet(schema.AFFINITY, client)):
            return [self._translate(walk, target, Did.RETURNED, met)]
        return self._pick(walk, f"{which}{family}-{count}", which, int(count))

    def _pick(self, walk: _Walk, chain: str, which: str, count: int) -> Iterable[_Walk]:
        first = chains.LOCAL_OFFSET if which == chains.LOCAL else 0
        slots = {
            index: met
            for index in range(count)
            if (met := self._meet(schema.ENDPOINTS, self._frontend + _INDEX.pack(first + index)))
        }
        left = Fraction(1)
        chances = dict.fromkeys(slots, Fraction(0))
        for modulus in chains.moduli(count):
            full = [index for index in slots if index < modulus]
            for index in full:
                chances[index] += left / modulus
            left *= Fraction(modulus - len(full), modulus)
        for index, met in slots.items():
            picked = replace(walk, probability=walk.probability * chances[index])
            yield self._translate(picked, chain, Did.PICKED, met)
        if left:
            lost = replace(walk, probability=walk.probability * left)
            yield lost.went(chain, Did.MISSED)

    def _translate(self, walk: _Walk, chain: str, did: Did, met: Element) -> _Walk:
        assert isinstance(met.value, bytes)  # noqa: S101 (a data map's)
        width = self._family.bits // 8
        return replace(
            walk.went(chain, did, met),
            destination=Address(met.value[:width]),
            port=Port(int.from_bytes(met.value[width : width + 2], "big")),
            translated=True,
        )

    def _key(self, walk: _Walk) -> bytes:
        return frontend_key(walk.destination, self._packet.protocol, walk.port)

    def _is_local(self, address: Address) -> bool:
        return address in self._machine.local

    def _meet(self, kind: SetKind, key: bytes) -> Element | None:
        return self._machine.meet(kind, self._family, key)


def _mark(walk: _Walk, chain: str, by: Element | None = None) -> _Walk:
    return replace(walk.went(chain, Did.MARKED, by), marked=True)
