"""Evaluate a base chain for a packet, with doubts where a rule cannot be decided.

An undecided rule leaves both ways open: its verdict is possible, and so is the rest of the chain. A
chain's result is the list of possible ends; what one of them says is certain only without doubts.
The work is bounded: a tenant of the node may have written the rules.
"""

from __future__ import annotations

import enum

import msgspec

from pyproxy.hostnet.firewall.bits import DoubtKind, Doubts, doubt, join_doubts, merge
from pyproxy.hostnet.firewall.changes import without_mark
from pyproxy.hostnet.firewall.hook_packet import HookPacket
from pyproxy.hostnet.firewall.verdicts import Action, Chain, Chains, Effect, Rule, Verdict

MOST_RULES = 45_000
"""Rules that are evaluated for all packets of an explanation."""

_MOST_DOUBTFUL = 20
_DEEPEST = 20
"""The kernel allows 16 nested jumps in nf_tables; legacy tables have no loops."""


class Certainty(enum.Enum):
    """How sure a finding is."""

    CERTAIN = "certain"
    PARTLY = "for a part of the packets"
    DEPENDS = "for some clients or rates"
    UNDECIDED = "undecided"


class Finding(msgspec.Struct, frozen=True):
    """A verdict other than accept that a packet meets, or may meet.

    `place` is empty for a chain's policy. `action` is ACCEPT where rules beyond the bound are not
    evaluated.
    """

    action: Action
    table: str
    chain: str
    place: str
    note: str = ""
    doubts: Doubts = ()

    @property
    def certainty(self) -> Certainty:
        """How sure it is."""
        kinds = {each.kind for each in self.doubts}
        if not kinds:
            return Certainty.CERTAIN
        if kinds == {DoubtKind.CHANCE}:
            return Certainty.PARTLY
        if DoubtKind.UNREADABLE in kinds:
            return Certainty.UNDECIDED
        return Certainty.DEPENDS


class ChainResult(msgspec.Struct, frozen=True):
    """The findings of a base chain, in order, and the packet behind it.

    `passes` is false if the packet certainly ends in this chain. `entered` are the chains that the
    packet was led to.
    """

    findings: tuple[Finding, ...]
    packet: HookPacket
    passes: bool
    entered: tuple[str, ...] = ()


_ENDS = (Action.DROP, Action.REJECT, Action.TRANSLATE, Action.DIVERT)


class Budget:
    """The rules that may still be evaluated."""

    def __init__(self, rules: int = MOST_RULES) -> None:
        self.left = rules


def evaluate(
    base: Chain, chains: Chains, packet: HookPacket, budget: Budget | None = None
) -> ChainResult:
    """Return the effect of a base chain on a packet. Raises KernelError while it reads rules."""
    walk = _Walk(chains, packet, budget or Budget())
    if not walk.run(base, (), 0):
        walk.end(base, "", base.policy, walk.flow)
    certain = not walk.accepts
    # Where every way through the chain ends in a fault, each is certain.
    findings = tuple(
        msgspec.structs.replace(each, doubts=()) if certain and each.action in _ENDS else each
        for each in walk.findings
    )
    return ChainResult(findings, walk.packet, walk.accepts, tuple(walk.entered))


class _Walk:
    """One packet's way through a base chain and the chains that it leads to."""

    def __init__(self, chains: Chains, packet: HookPacket, budget: Budget) -> None:
        self._chains = chains
        self._budget = budget
        self.packet = packet
        self.findings: list[Finding] = []
        self.accepts = False
        self.entered: dict[str, None] = {}
        # Doubts of the accepts so far: what follows is reached only if those rules do not match.
        self.flow: Doubts = ()

    def run(self, chain: Chain, doubts: Doubts, depth: int) -> bool:
        """Evaluate a chain; return whether the packet certainly ends in it."""
        for rule in chain.rules:
            self._budget.left -= 1
            if self._budget.left < 0:
                return self._beyond(
                    chain, f"more than {MOST_RULES:,} rules for all packets", doubts
                )
            effect = rule.apply(self.packet)
            if effect.untracked and effect.matches:
                self._find(
                    chain, rule.where, Verdict(Action.NOTRACK), join_doubts(doubts, effect.doubts)
                )
            changes = effect.changes or without_mark(self.packet, effect.packet)
            if changes and effect.matches:
                changed = Verdict(Action.DIVERT, note=changes)
                self._find(chain, rule.where, changed, join_doubts(doubts, effect.doubts))
            self._change(effect)
            if not effect.matches:
                continue
            ended, doubts = self._verdicts(chain, rule, effect, doubts, depth)
            if ended is not None:
                return ended
        if not chain.complete:
            return self._beyond(chain, f"more than {len(chain.rules):,} rules", doubts)
        return False

    def _verdicts(
        self, chain: Chain, rule: Rule, effect: Effect, doubts: Doubts, depth: int
    ) -> tuple[bool | None, Doubts]:
        """Follow a rule's verdicts; return whether the chain ends here, and how, and the doubts."""
        for verdict in effect.verdicts:
            total = join_doubts(doubts, effect.doubts)
            if verdict.action is Action.RETURN:
                if not effect.doubts:
                    return False, doubts
                doubts = total
            elif verdict.action in (Action.JUMP, Action.GOTO):
                ended = self._enter(verdict.chain, total, depth)
                if effect.doubts:
                    # A chain that is gone to does not come back here.
                    doubts = total if verdict.action is Action.GOTO else doubts
                elif ended or verdict.action is Action.GOTO:
                    return ended and not doubts, doubts
            else:
                self.end(chain, rule.where, verdict, join_doubts(total, self.flow))
                if not effect.doubts:
                    return not doubts, doubts
        return None, doubts

    def _enter(self, name: str, doubts: Doubts, depth: int) -> bool:
        target = self._chains.chain(name)
        self.entered[target.name] = None
        if depth >= _DEEPEST:
            return self._beyond(target, f"more than {_DEEPEST} nested jumps", doubts)
        return self.run(target, doubts, depth + 1)

    def end(self, chain: Chain, place: str, verdict: Verdict, doubts: Doubts) -> None:
        """Record an end of the packet's way through the base chain."""
        if verdict.action is Action.ACCEPT:
            self.accepts = True
            self.flow = join_doubts(self.flow, doubts)
        else:
            self._find(chain, place, verdict, doubts)

    def _find(self, chain: Chain, place: str, verdict: Verdict, doubts: Doubts) -> None:
        # A list of blocked clients has a doubtful rule for each.
        if doubts and len(self.findings) >= _MOST_DOUBTFUL:
            return
        self.findings.append(
            Finding(verdict.action, chain.table, chain.name, place, verdict.note, doubts)
        )

    def _beyond(self, chain: Chain, what: str, doubts: Doubts) -> bool:
        unread = join_doubts(doubts, doubt(DoubtKind.UNREADABLE, what))
        self._find(chain, "", Verdict(Action.DROP, "", what), unread)
        self.accepts = True
        return not doubts

    def _change(self, effect: Effect) -> None:
        before, after = self.packet, effect.packet
        if after is before:
            return
        if effect.doubts:
            mark = merge(before.mark, after.mark, effect.doubts)
            connection, known = after.connection, before.connection
            if connection and known:
                merged = merge(known.mark, connection.mark, effect.doubts)
                connection = msgspec.structs.replace(known, mark=merged)
            after = msgspec.structs.replace(after, mark=mark, connection=connection)
        self.packet = after
