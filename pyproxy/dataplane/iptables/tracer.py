"""Compute from the rules' values what they do with a packet: no kernel, no policy.

This is a model of the kernel: the hooks that a packet passes, the order in which rules are tried,
and where a chain returns to. It counts the rules that a packet meets.

No rule tests source ports, so a packet here has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from fractions import Fraction

import msgspec
from msgspec.structs import replace

from pyproxy.dataplane.iptables.base_rules import FILTER, MANGLE, NAT
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
"""A call stack: chains, each with the index of its next rule, the innermost last."""


class TraceState(msgspec.Struct, frozen=True):
    """The state that decides about a packet: the chains of each table, built-in ones included.

    `local` are the addresses of the node's interfaces. `seen` has the clients that were sent to an
    endpoint, by the endpoint's chain.
    """

    tables: Mapping[str, Chains]
    local: frozenset[Address] = frozenset()
    seen: Mapping[str, Set[Address]] = {}


class Step(msgspec.Struct, frozen=True):
    """A rule that matched a packet, with its place."""

    table: str
    chain: str
    rule: Rule


class Path(msgspec.Struct, frozen=True):
    """One path that a packet may take, with its probability; those of a packet add up to 1.

    `rules` counts the rules that it met, `steps` has those that matched. `ended` is the target that
    dropped or rejected it; it is empty if the packet went to `destination` and `port`.
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


def trace(packet: Packet, state: TraceState) -> tuple[Path, ...]:
    """Return the paths of a packet through all hooks that it passes on this node."""
    paths: tuple[Path, ...] = (Path(packet.destination, packet.port),)
    hooks = _Hooks(packet, state)
    sent = not packet.interface
    # A packet to the node itself enters again over lo. That is left out: nat decides once for each
    # connection, and the loopback shield exempts lo.
    if sent:
        paths = hooks.through(NAT, "OUTPUT", paths)
        paths = hooks.through(FILTER, "OUTPUT", paths)
        paths = hooks.through(NAT, "POSTROUTING", paths)
    else:
        paths = hooks.through(MANGLE, "PREROUTING", paths)
        paths = hooks.through(NAT, "PREROUTING", paths)
        paths = hooks.through(FILTER, "FORWARD", paths, here=False)
        paths = hooks.through(NAT, "POSTROUTING", paths, here=False)
    return hooks.through(FILTER, "INPUT", paths, here=True)


class _Hooks:
    """One packet and one state."""

    def __init__(self, packet: Packet, state: TraceState) -> None:
        self._packet = packet
        self._state = state

    def through(
        self, table: str, hook: str, paths: tuple[Path, ...], *, here: bool | None = None
    ) -> tuple[Path, ...]:
        """Extend the paths by a hook: all, or only those that end (`here`), or not, at the node."""
        # The kernel evaluates nat for the first packet of a connection only.
        if table == NAT and not self._packet.new:
            return paths
        found: list[Path] = []
        for path in paths:
            if path.ended or here not in (None, path.destination in self._state.local):
                found.append(path)
            else:
                begun = replace(path, decided=False)
                found.extend(self._follow(table, ((hook, 0),), begun))
        return tuple(found)

    def _follow(self, table: str, frames: Frames, path: Path) -> Iterator[Path]:
        chains = self._state.tables.get(table, {})
        while frames and not path.decided:
            *outer, (chain, index) = frames
            rules = chains.get(chain, ())
            if index >= len(rules):
                frames = tuple(outer)
                continue
            rule = rules[index]
            behind = (*outer, (chain, index + 1))
            path = replace(path, rules=path.rules + 1)
            if not self._matches(rule, path):
                frames = behind
                continue
            if rule.share:
                share = Fraction(rule.share, CERTAIN)
                missed = replace(path, probability=path.probability * (1 - share))
                yield from self._follow(table, behind, missed)
                path = replace(path, probability=path.probability * share)
            frames = self._frames(rule, tuple(outer), behind)
            path = self._act(rule, replace(path, steps=(*path.steps, Step(table, chain, rule))))
        yield path

    @staticmethod
    def _frames(rule: Rule, outer: Frames, behind: Frames) -> Frames:
        # -g leaves no return address: after the new chain, the caller of this one continues.
        if isinstance(rule.target, Jump):
            return (*(behind if rule.target.returns else outer), (rule.target.chain, 0))
        return outer if rule.target == RETURN else behind

    def _act(self, rule: Rule, path: Path) -> Path:
        if rule.seen and not rule.seen.seconds:
            path = replace(path, seen=rule.seen.chain)
        if rule.target == RETURN or isinstance(rule.target, Jump):
            return path
        match rule.target:
            case SetMark(mark=mark, on=on):
                return replace(path, mark=Mark(path.mark | mark if on else path.mark ^ mark))
            case Translate(backend=backend):
                to = Address(backend[:-2])
                port = Port(int.from_bytes(backend[-2:], "big"))
                return replace(path, destination=to, port=port, translated=True, decided=True)
        ended = {ACCEPT: "", MASQUERADE: "", DROP: "drop", RESET: "reset"}
        return replace(
            path,
            ended=ended.get(rule.target, "unreachable"),
            masqueraded=path.masqueraded or rule.target == MASQUERADE,
            decided=True,
        )

    def _matches(self, rule: Rule, path: Path) -> bool:
        packet = self._packet
        return (
            (rule.source is None or (packet.source in rule.source) is not rule.not_source)
            and (rule.destination is None or path.destination in rule.destination)
            and (not rule.interface or self._is_in(rule.interface) is not rule.not_interface)
            and rule.protocol in (None, packet.protocol)
            and (rule.ports is None or rule.ports[0] <= path.port <= rule.ports[1])
            and (not rule.from_here or packet.source in self._state.local)
            and (not rule.to_here or path.destination in self._state.local)
            and (
                not rule.states or (self._ct_state in rule.states.split(",")) is not rule.not_states
            )
            and not (rule.untranslated and path.translated)
            and (rule.marked is None or bool(path.mark & rule.marked) is not rule.not_marked)
            and self._is_seen(rule)
        )

    @property
    def _ct_state(self) -> str:
        return "NEW" if self._packet.new else "ESTABLISHED"

    def _is_in(self, interface: str) -> bool:
        prefix = interface.removesuffix("+")
        if prefix != interface:
            return self._packet.interface.startswith(prefix)
        return self._packet.interface == interface

    def _is_seen(self, rule: Rule) -> bool:
        if rule.seen is None or not rule.seen.seconds:
            return True
        return self._packet.source in self._state.seen.get(rule.seen.chain, ())
