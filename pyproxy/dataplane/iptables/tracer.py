"""What the rules do with a packet, worked out from their values: no kernel, no policy.

The kernel's part is written down here by hand: which hooks a packet passes, in which order rules
are tried, where a chain returns to. It counts the rules that a packet meets on its way.

Nothing in the rules looks at source ports, so a packet here has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from fractions import Fraction

import msgspec
from msgspec.structs import replace

from pyproxy.dataplane.iptables.fixed import FILTER, MANGLE, NAT
from pyproxy.dataplane.iptables.rules import (
    ACCEPT,
    CERTAIN,
    DROP,
    MASQUERADE,
    RESET,
    RETURN,
    Chains,
    Jump,
    Rule,
    SetMark,
    Translate,
)
from pyproxy.dataplane.packets import Packet
from pyproxy.model.address import Address, Mark, Port

Frames = tuple[tuple[str, int], ...]
"""Where a packet is: chains, each with the rule that is next there, the innermost last."""


class Machine(msgspec.Struct, frozen=True):
    """What decides over a packet: the chains of each table, the kernel's own among them.

    `local` are the addresses of the machine's interfaces, and `seen` the clients that were sent to
    an endpoint, by its chain.
    """

    tables: Mapping[str, Chains]
    local: frozenset[Address] = frozenset()
    seen: Mapping[str, Set[Address]] = {}


class Step(msgspec.Struct, frozen=True):
    """A rule that took a packet, where it stands."""

    table: str
    chain: str
    rule: Rule


class Way(msgspec.Struct, frozen=True):
    """One way that a packet may go, and how likely it is; the ways of a packet add up to 1.

    `rules` counts those that it met, `steps` are those that took it. `ended` is the target that
    dropped or refused it, empty where it went to `destination` and `port`.
    """

    destination: Address
    port: Port
    probability: Fraction = Fraction(1)
    rules: int = 0
    steps: tuple[Step, ...] = ()
    mark: Mark = Mark(0)
    translated: bool = False
    masqueraded: bool = False
    seen: str = ""
    ended: str = ""
    decided: bool = False


def trace(packet: Packet, machine: Machine) -> tuple[Way, ...]:
    """Follow a packet through all the hooks that it passes on this machine."""
    ways: tuple[Way, ...] = (Way(packet.destination, packet.port),)
    hooks = _Hooks(packet, machine)
    sent = not packet.interface
    if sent:
        ways = hooks.through(NAT, "OUTPUT", ways)
        ways = hooks.through(FILTER, "OUTPUT", ways)
        ways = hooks.through(NAT, "POSTROUTING", ways)
    else:
        ways = hooks.through(MANGLE, "PREROUTING", ways)
        ways = hooks.through(NAT, "PREROUTING", ways)
        ways = hooks.through(FILTER, "FORWARD", ways, here=False)
        ways = hooks.through(NAT, "POSTROUTING", ways, here=False)
    return hooks.through(FILTER, "INPUT", ways, here=True)


class _Hooks:
    """One packet before one machine."""

    def __init__(self, packet: Packet, machine: Machine) -> None:
        self._packet = packet
        self._machine = machine

    def through(
        self, table: str, hook: str, ways: tuple[Way, ...], *, here: bool | None = None
    ) -> tuple[Way, ...]:
        """Take the ways through a hook; `here` for those alone that do, or do not, end here."""
        # nat looks at the first packet of a connection alone.
        if table == NAT and not self._packet.new:
            return ways
        found: list[Way] = []
        for way in ways:
            if way.ended or here not in (None, way.destination in self._machine.local):
                found.append(way)
            else:
                begun = replace(way, decided=False)
                found.extend(self._follow(table, ((hook, 0),), begun))
        return tuple(found)

    def _follow(self, table: str, frames: Frames, way: Way) -> Iterator[Way]:
        chains = self._machine.tables.get(table, {})
        while frames and not way.decided:
            *outer, (chain, index) = frames
            rules = chains.get(chain, ())
            if index >= len(rules):
                frames = tuple(outer)
                continue
            rule = rules[index]
            behind = (*outer, (chain, index + 1))
            way = replace(way, rules=way.rules + 1)
            if not self._matches(rule, way):
                frames = behind
                continue
            if rule.share:
                share = Fraction(rule.share, CERTAIN)
                missed = replace(way, probability=way.probability * (1 - share))
                yield from self._follow(table, behind, missed)
                way = replace(way, probability=way.probability * share)
            frames = self._frames(rule, tuple(outer), behind)
            way = self._act(rule, replace(way, steps=(*way.steps, Step(table, chain, rule))))
        yield way

    @staticmethod
    def _frames(rule: Rule, outer: Frames, behind: Frames) -> Frames:
        if isinstance(rule.target, Jump):
            return (*(behind if rule.target.returns else outer), (rule.target.chain, 0))
        return outer if rule.target == RETURN else behind

    def _act(self, rule: Rule, way: Way) -> Way:
        if rule.seen and not rule.seen.seconds:
            way = replace(way, seen=rule.seen.chain)
        if rule.target == RETURN or isinstance(rule.target, Jump):
            return way
        match rule.target:
            case SetMark(mark=mark, on=on):
                return replace(way, mark=Mark(way.mark | mark if on else way.mark ^ mark))
            case Translate(backend=backend):
                to = Address(backend[:-2])
                port = Port(int.from_bytes(backend[-2:], "big"))
                return replace(way, destination=to, port=port, translated=True, decided=True)
        ended = {ACCEPT: "", MASQUERADE: "", DROP: "drop", RESET: "reset"}
        return replace(
            way,
            ended=ended.get(rule.target, "unreachable"),
            masqueraded=way.masqueraded or rule.target == MASQUERADE,
            decided=True,
        )

    def _matches(self, rule: Rule, way: Way) -> bool:
        packet = self._packet
        return (
            (rule.source is None or (packet.source in rule.source) is not rule.not_source)
            and (rule.destination is None or way.destination in rule.destination)
            and (not rule.interface or self._is_in(rule.interface) is not rule.not_interface)
            and rule.protocol in (None, packet.protocol)
            and (rule.ports is None or rule.ports[0] <= way.port <= rule.ports[1])
            and (not rule.from_here or packet.source in self._machine.local)
            and (not rule.states or (self._state in rule.states.split(",")) is not rule.not_states)
            and not (rule.untranslated and way.translated)
            and (rule.marked is None or bool(way.mark & rule.marked) is not rule.not_marked)
            and self._is_seen(rule)
        )

    @property
    def _state(self) -> str:
        return "NEW" if self._packet.new else "ESTABLISHED"

    def _is_in(self, interface: str) -> bool:
        prefix = interface.removesuffix("+")
        if prefix != interface:
            return self._packet.interface.startswith(prefix)
        return self._packet.interface == interface

    def _is_seen(self, rule: Rule) -> bool:
        if rule.seen is None or not rule.seen.seconds:
            return True
        return self._packet.source in self._machine.seen.get(rule.seen.chain, ())
