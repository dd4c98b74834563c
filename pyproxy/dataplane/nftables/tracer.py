"""The packet tracer: the table's action on a packet, computed from elements alone.

The meaning of the base rules is written down here a second time, by hand, so that tests can hold
it against the kernel. It uses no kernel, no packet and no policy. Packets pass the hooks in this
order: source ranges, translation, then forward, or input for this node's own endpoints, and
postrouting. A packet that the node sends passes output in place of forward. If the node sends it to
itself, it then passes prerouting and input as well.

No rule looks at source ports, so a packet here has none.
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
from pyproxy.dataplane.nft.rows import PORT_PADDING, frontend_key
from pyproxy.dataplane.nft.schema import SetKind
from pyproxy.dataplane.nftables import chains, schema
from pyproxy.dataplane.nftables.base_rules import NftablesOptions
from pyproxy.dataplane.nftables.offload_tracer import OffloadTracer
from pyproxy.dataplane.packets import (
    Delivered,
    Dropped,
    DropReason,
    Masquerade,
    Offload,
    Packet,
    Rejected,
    RejectWith,
    TracePath,
    TraceResult,
    TraceStep,
    Untouched,
    Verdict,
)
from pyproxy.model.address import (
    Address,
    Backend,
    Family,
    Port,
    Protocol,
    backend,
    family_of,
    parse_network,
)
from pyproxy.netlink.elements import DROP, Tag

_SPLITS = {f"split{family.value}": family for family in Family}
_NODE_SPLITS = {f"split-node{family.value}": family for family in Family}
_PICK = re.compile(r"(masq-)?(affinity-)?(node-)?(cluster|local)([46])-([0-9]+)")
_ALL_SPLITS = _SPLITS | _NODE_SPLITS
_LOOPBACK = parse_network("127.0.0.0/8")
_INDEX = struct.Struct("=I")
_CERTAIN = Fraction(1)


class Action(enum.Enum):
    """The action of a rule or an element on a packet."""

    SHIELDED = "only the node itself may send to a loopback address"
    IN_RANGES = "its source is in a source range"
    NOT_IN_RANGES = "its source is in no source range"
    MARKED = "marked to be masqueraded"
    DISPATCHED = "continues in the frontend's chain"
    NOT_ALLOWED = "the traffic policy allows no endpoint"
    RETURNED = "the client had this endpoint before"
    PICKED = "translated to a random endpoint"
    MISSED = "no random number had an endpoint"
    NO_ENDPOINT = "the Service has no endpoint"
    NO_SUCH_PORT = "no Service has this port of the address"
    LEARNED = "the client comes back to this endpoint"
    UNMARKED = "masqueraded by its mark"
    HAIRPIN = "masqueraded as a hairpin"
    ESTABLISHED = "goes the way of the first packet of its connection"


class Step(msgspec.Struct, frozen=True):
    """One action on a packet, with its chain, and the element behind it if there is one."""

    chain: str
    action: Action
    element: Element | None = None

    def trace_step(self) -> TraceStep:
        """Return the step as all proxy modes write it."""
        return TraceStep(self.chain, self.action.value, str(self.element or ""))


class TablePath(msgspec.Struct, frozen=True):
    """One path through the table, with its verdict and the probability of both.

    `learned` is the element of the affinity map that the packet adds, or whose timeout it renews.
    """

    verdict: Verdict
    probability: Fraction
    steps: tuple[Step, ...]
    learned: Element | None = None
    offload: Offload | None = None


class Trace(msgspec.Struct, frozen=True):
    """All paths that a packet may take; their probabilities add up to 1."""

    packet: Packet
    paths: tuple[TablePath, ...]

    def verdicts(self) -> dict[Verdict, Fraction]:
        """Return the probability of each verdict."""
        found: dict[Verdict, Fraction] = {}
        for path in self.paths:
            found[path.verdict] = found.get(path.verdict, Fraction(0)) + path.probability
        return found

    def backends(self) -> frozenset[Backend]:
        """Return every endpoint that the packet may be delivered to."""
        verdicts = (path.verdict for path in self.paths)
        return frozenset(verdict.backend for verdict in verdicts if isinstance(verdict, Delivered))

    def result(self, remarks: tuple[str, ...] = ()) -> TraceResult:
        """Return the trace as all proxy modes write it."""
        paths = (
            TracePath(
                path.verdict,
                path.probability,
                tuple(map(Step.trace_step, path.steps)),
                path.offload,
            )
            for path in self.paths
        )
        return TraceResult(self.packet, tuple(paths), remarks)

    def __str__(self) -> str:
        return str(self.result())


class NftablesView(msgspec.Struct, frozen=True):
    """The kernel state that the tracer follows: elements, options, learned affinities.

    `learned` holds the affinity maps, `local` the addresses of this node's interfaces.
    `offloads` is whether the rules of the fast path are there.
    """

    table: Lookups
    options: NftablesOptions
    local: frozenset[Address] = frozenset()
    learned: Lookups = {}
    offloads: bool = False

    def find(self, kind: SetKind, family: Family, key: bytes) -> Element | None:
        """Return the element that a key is in."""
        return find_element(self.learned if kind.learned else self.table, kind, family, key)

    def is_from_pod(self, packet: Packet) -> bool | None:
        """Return whether the rules take a packet for a pod's; None where they do not test it."""
        # The kernel compares an empty name if the node itself sends the packet.
        if wanted := self.options.pod_interface:
            prefix = wanted.removesuffix("*")
            if prefix != wanted:
                return packet.interface.startswith(prefix)
            return packet.interface == wanted
        family = family_of(packet.source)
        if family in self.options.pod_families:
            return self.find(nft.PODS, family, packet.source) is not None
        return None


class _Walk(msgspec.Struct, frozen=True):
    """A path so far; `verdict` ends it."""

    destination: Address
    port: Port
    probability: Fraction = _CERTAIN
    steps: tuple[Step, ...] = ()
    marked: bool = False
    translated: bool = False
    masquerade: Masquerade = Masquerade.NONE
    learned: Element | None = None
    offload: Offload | None = None
    verdict: Verdict | None = None

    def step(self, chain: str, action: Action, element: Element | None = None) -> _Walk:
        return replace(self, steps=(*self.steps, Step(chain, action, element)))


def trace(packet: Packet, view: NftablesView) -> Trace:
    """Return a packet's paths through the table. Raises ValueError for a foreign verdict.

    A packet that the node sends to itself passes the source ranges again in prerouting. They test
    its first source address here, even if it has been masqueraded since.
    """
    start = _Walk(packet.destination, packet.port)
    if not packet.new:
        walks = [start.step("conntrack", Action.ESTABLISHED)]
    else:
        walks = _Tracer(packet, view).follow(start)
    return Trace(packet, tuple(map(_finished, walks)))


def _finished(walk: _Walk) -> TablePath:
    verdict = walk.verdict
    if verdict is None:
        verdict = Untouched(walk.masquerade)
        if walk.translated:
            verdict = Delivered(_backend(walk), walk.masquerade)
    return TablePath(verdict, walk.probability, walk.steps, walk.learned, walk.offload)


class _Tracer:
    """The paths of one packet through one kernel state."""

    def __init__(self, packet: Packet, view: NftablesView) -> None:
        self._packet = packet
        self._view = view
        self._family = family_of(packet.destination)
        self._frontend = frontend_key(packet.destination, packet.protocol, packet.port)
        self._node_port = frontend_key(Address(b""), packet.protocol, packet.port)
        self._at_node = self._find(schema.NODE_PORT_ADDRESSES, packet.destination) is not None
        self._from_pod = view.is_from_pod(packet)
        self._fast_path = OffloadTracer(packet, self._find, at_node=self._at_node)

    def follow(self, start: _Walk) -> list[_Walk]:
        sent_here = not self._packet.interface
        hook = "filter-output-before" if sent_here else "filter-prerouting"
        first = self._source_ranges(self._shield(start, hook), hook)
        if first.verdict is not None:
            return [first]
        ends = [
            self._send(walk) if sent_here else self._receive(walk) for walk in self._services(first)
        ]
        return [self._later(walk) for walk in ends] if self._view.offloads else ends

    def _later(self, walk: _Walk) -> _Walk:
        if walk.verdict is not None or not walk.translated:
            return walk
        here = self._is_local(walk.destination)
        return replace(walk, offload=self._fast_path.offload(_backend(walk), received_here=here))

    def _send(self, walk: _Walk) -> _Walk:
        walk = self._reject(walk, "filter-output", no_such_port=True)
        if walk.verdict is None:
            walk = self._postrouting(walk)
            # The packet loops through the device lo and enters prerouting; its nat is done already.
            if self._is_local(walk.destination):
                walk = self._source_ranges(walk, "filter-prerouting")
                walk = self._input(walk)
        return walk

    def _receive(self, walk: _Walk) -> _Walk:
        # Routing follows prerouting, so the endpoint decides between input and forward.
        if self._is_local(walk.destination):
            return self._input(walk)
        walk = self._reject(walk, "filter-forward", no_such_port=True)
        return self._postrouting(walk)

    def _input(self, walk: _Walk) -> _Walk:
        return self._reject(self._learn(walk, "learn-input"), "filter-input", no_such_port=False)

    def _postrouting(self, walk: _Walk) -> _Walk:
        walk = self._learn(walk, "learn-postrouting")
        if walk.verdict is not None:
            return walk
        chain = "masquerading"
        # The mark is tested first, so a marked hairpin is masqueraded by its mark.
        if walk.marked:
            return replace(walk.step(chain, Action.UNMARKED), masquerade=Masquerade.MARK)
        # Masquerading is at srcnat, so this rule still finds the client's own address.
        pair = self._packet.source + walk.destination
        if walk.translated and (element := self._find(nft.HAIRPIN, pair)):
            return replace(walk.step(chain, Action.HAIRPIN, element), masquerade=Masquerade.HAIRPIN)
        return walk

    def _shield(self, walk: _Walk, hook: str) -> _Walk:
        shielded = self._view.options.shield_loopback and walk.destination in _LOOPBACK
        # The rules also test `ct state`, and a packet here is the first of its connection.
        if not shielded or self._packet.interface in ("", "lo"):
            return walk
        return replace(walk.step(hook, Action.SHIELDED), verdict=Dropped(DropReason.LOOPBACK))

    def _source_ranges(self, walk: _Walk, hook: str) -> _Walk:
        key = self._key(walk)
        # On the second pass, through lo, the destination may be an endpoint already.
        has_ranges = self._find(nft.SOURCE_RANGE_FRONTENDS, key)
        if walk.verdict is not None or has_ranges is None:
            return walk
        if element := self._find(nft.SOURCES, key + self._packet.source):
            return walk.step(hook, Action.IN_RANGES, element)
        return replace(
            walk.step(hook, Action.NOT_IN_RANGES, has_ranges),
            verdict=Dropped(DropReason.SOURCE_RANGES),
        )

    def _reject(self, walk: _Walk, hook: str, *, no_such_port: bool) -> _Walk:
        if walk.verdict is not None:
            return walk
        action = Action.NO_ENDPOINT
        element = self._find(nft.NO_ENDPOINT_SERVICES, self._key(walk))
        if element is None and self._find(schema.NODE_PORT_ADDRESSES, walk.destination):
            key = frontend_key(Address(b""), self._packet.protocol, walk.port)
            element = self._find(schema.NO_ENDPOINT_NODE_PORTS, key)
        if element is None and no_such_port:
            action, element = Action.NO_SUCH_PORT, self._find(nft.CLUSTER_IPS, walk.destination)
        if element is None:
            return walk
        reject_with = (
            RejectWith.TCP_RESET if self._packet.protocol is Protocol.TCP else RejectWith.ICMP
        )
        return replace(walk.step(hook, action, element), verdict=Rejected(reject_with))

    def _learn(self, walk: _Walk, hook: str) -> _Walk:
        # An nft update renews an element's timeout and keeps its data, so the first one counts.
        endpoints, place = schema.AFFINITY_ENDPOINTS, self._frontend
        affinity = self._find(schema.AFFINITY_FRONTENDS, place)
        if affinity is None and self._at_node:
            endpoints, place = schema.NODE_PORT_AFFINITY_ENDPOINTS, self._node_port
            affinity = self._find(schema.NODE_PORT_AFFINITY, place)
        if walk.verdict is not None or walk.learned is not None or affinity is None:
            return walk
        # The frontend is conntrack's original destination, as it was before the translation.
        endpoint = _backend(walk) + PORT_PADDING
        if self._find(endpoints, place + endpoint) is None:
            return walk
        key = self._packet.source + self._frontend
        learned = Element(schema.AFFINITY, self._family, key, endpoint)
        return replace(walk.step(hook, Action.LEARNED, learned), learned=learned)

    def _services(self, walk: _Walk) -> Iterable[_Walk]:
        to_cluster_ip = self._find(nft.CLUSTER_IPS, walk.destination)
        if to_cluster_ip and (self._view.options.masquerade_all or self._from_pod is False):
            walk = _mark(walk, "services", to_cluster_ip)
        mapped = self._find(schema.NODE_PORTS, self._node_port) if self._at_node else None
        if mapped is None:
            mapped = self._find(schema.SERVICES, self._frontend)
        return self._go(walk, "services", mapped) if mapped else [walk]

    def _split(self, walk: _Walk, chain: str) -> Iterable[_Walk]:
        if chain in _NODE_SPLITS:
            internal = self._find(schema.INTERNAL_NODE_PORTS, self._node_port)
            external = self._find(schema.EXTERNAL_NODE_PORTS, self._node_port)
        else:
            internal = self._find(schema.INTERNAL_SERVICES, self._frontend)
            external = self._find(schema.EXTERNAL_SERVICES, self._frontend)
        if self._from_pod and internal:
            return self._go(walk, chain, internal)
        # `fib saddr type local`: the node's own packets are internal, and marked.
        if self._is_local(self._packet.source):
            # Statements run in order: the packet is marked even if the lookup after it fails.
            walk = _mark(walk, chain)
            if internal:
                return self._go(walk, chain, internal)
        return self._go(walk, chain, external) if external else [walk]

    def _go(self, walk: _Walk, chain: str, mapped: Element) -> Iterable[_Walk]:
        target = mapped.value.target if isinstance(mapped.value, Tag) else ""
        if target == DROP:
            return [
                replace(
                    walk.step(chain, Action.NOT_ALLOWED, mapped), verdict=Dropped(DropReason.POLICY)
                )
            ]
        walk = walk.step(chain, Action.DISPATCHED, mapped)
        if family := _ALL_SPLITS.get(target):
            return self._split(walk, target) if family is self._family else [walk]
        found = _PICK.fullmatch(target)
        if found is None:
            raise ValueError(f"{mapped}: pyproxy makes no chain {target!r}")
        masquerade, affinity, node, which, version, count = found.groups()
        if masquerade:
            walk = _mark(walk, target)
        # Chains of the other family test nfproto and let the packet pass.
        if int(version) != self._family:
            return [walk]
        client = self._packet.source + self._frontend
        if affinity and (element := self._find(schema.AFFINITY, client)):
            return [self._translate(walk, target, Action.RETURNED, element)]
        return self._pick(
            walk, f"{node or ''}{which}{version}-{count}", bool(node), which, int(count)
        )

    def _pick(self, walk: _Walk, chain: str, node: bool, which: str, count: int) -> Iterable[_Walk]:
        kind = schema.NODE_PORT_ENDPOINTS if node else schema.ENDPOINTS
        frontend = self._node_port if node else self._frontend
        first = chains.LOCAL_OFFSET if which == chains.LOCAL else 0
        slots = {
            index: element
            for index in range(count)
            if (element := self._find(kind, frontend + _INDEX.pack(first + index)))
        }
        left = Fraction(1)
        chances = dict.fromkeys(slots, Fraction(0))
        # An empty slot leads to the next draw, which is independent of the ones before.
        for modulus in chains.moduli(count):
            full = [index for index in slots if index < modulus]
            for index in full:
                chances[index] += left / modulus
            left *= Fraction(modulus - len(full), modulus)
        for index, element in slots.items():
            picked = replace(walk, probability=walk.probability * chances[index])
            yield self._translate(picked, chain, Action.PICKED, element)
        if left:
            missed = replace(walk, probability=walk.probability * left)
            yield missed.step(chain, Action.MISSED)

    def _translate(self, walk: _Walk, chain: str, action: Action, element: Element) -> _Walk:
        assert isinstance(element.value, bytes)  # noqa: S101 (a data map's)
        width = self._family.bits // 8
        return replace(
            walk.step(chain, action, element),
            destination=Address(element.value[:width]),
            port=Port(int.from_bytes(element.value[width : width + 2], "big")),
            translated=True,
        )

    def _key(self, walk: _Walk) -> bytes:
        return frontend_key(walk.destination, self._packet.protocol, walk.port)

    def _is_local(self, address: Address) -> bool:
        return address in self._view.local

    def _find(self, kind: SetKind, key: bytes) -> Element | None:
        return self._view.find(kind, self._family, key)


def _backend(walk: _Walk) -> Backend:
    return backend(walk.destination, walk.port)


def _mark(walk: _Walk, chain: str, by: Element | None = None) -> _Walk:
    return replace(walk.step(chain, Action.MARKED, by), marked=True)
