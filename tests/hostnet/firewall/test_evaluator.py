"""The evaluator: undecided rules leave both ways open, and certain ends are certain."""

from __future__ import annotations

import msgspec
import pytest

from pyproxy.hostnet.firewall.bits import DoubtKind, Doubts, doubt, number
from pyproxy.hostnet.firewall.evaluator import MOST_RULES, Budget, Certainty, evaluate
from pyproxy.hostnet.firewall.hook_packet import Hook, HookPacket
from pyproxy.hostnet.firewall.verdicts import (
    ACCEPT,
    DROP,
    RETURN,
    Action,
    Chain,
    Effect,
    Verdict,
)
from pyproxy.model.address import Family, Port, parse_address

SOURCE = doubt(DoubtKind.CLIENT, "the client's address")
OPAQUE = doubt(DoubtKind.UNREADABLE, "match u32")
CHANCE = doubt(DoubtKind.CHANCE, "a random number")
PACKET = HookPacket(
    Family.IPV4, 6, None, parse_address("10.244.1.11"), 45_678, Port(8080), Hook.FORWARD
)
QUEUE = Verdict(Action.DIVERT, note="to a program's queue")


class Words:
    """A rule in words: what makes it undecided, its verdict, and the mark that it sets or needs."""

    def __init__(self, text: str) -> None:
        self.where = text
        self._words = text.split()

    def apply(self, packet: HookPacket) -> Effect:
        verdicts: list[Verdict] = []
        doubts: Doubts = ()
        untracked = False
        words = iter(self._words)
        for word in words:
            if word == "never":
                return Effect(False, packet)
            if word == "marked" and packet.mark == number(0):
                return Effect(False, packet)
            if word == "marked" and not packet.mark.complete:
                doubts = (*doubts, *packet.mark.doubts)
            if word == "mark":
                packet = msgspec.structs.replace(packet, mark=number(1))
            untracked |= word == "notrack"
            doubts = (
                *doubts,
                *{"source": SOURCE, "opaque": OPAQUE, "chance": CHANCE}.get(word, ()),
            )
            if word in ("jump", "goto"):
                verdicts.append(Verdict(Action[word.upper()], next(words)))
            elif word in _VERDICTS:
                verdicts.append(_VERDICTS[word])
        return Effect(True, packet, tuple(verdicts), doubts, untracked)


_VERDICTS = {"accept": ACCEPT, "drop": DROP, "return": RETURN, "queue": QUEUE}


class Table:
    def __init__(self, **chains: str) -> None:
        self._chains = chains

    def title(self, name: str) -> str:
        return name

    def chain(self, name: str) -> Chain:
        text = self._chains[name]
        rules = [Words(each.strip()) for each in text.split(";") if each.strip()]
        return Chain("ip t", name, rules, DROP if name == "policy" else ACCEPT)


# Chains, and the findings: the rule, its certainty; whether the packet may pass.
CASES: list[tuple[dict[str, str], list[tuple[str, Certainty]], bool]] = [
    ({"base": ""}, [], True),
    ({"base": "drop"}, [("drop", Certainty.CERTAIN)], False),
    ({"base": "never drop; accept; drop"}, [], True),
    ({"policy": ""}, [("", Certainty.CERTAIN)], False),
    ({"policy": "accept"}, [], True),
    ({"base": "source drop"}, [("source drop", Certainty.DEPENDS)], True),
    ({"base": "opaque drop"}, [("opaque drop", Certainty.UNDECIDED)], True),
    ({"base": "chance drop"}, [("chance drop", Certainty.PARTLY)], True),
    ({"base": "chance opaque drop"}, [("chance opaque drop", Certainty.UNDECIDED)], True),
    # An undecided rule that only counts or accepts leaves both ways open.
    ({"base": "opaque accept"}, [], True),
    ({"base": "opaque"}, [], True),
    ({"policy": "opaque accept"}, [("", Certainty.UNDECIDED)], True),
    ({"policy": "source accept"}, [("", Certainty.DEPENDS)], True),
    ({"base": "opaque accept; drop"}, [("drop", Certainty.UNDECIDED)], True),
    # Every way ends in a drop.
    (
        {"base": "opaque drop; drop"},
        [("opaque drop", Certainty.CERTAIN), ("drop", Certainty.CERTAIN)],
        False,
    ),
    (
        {"policy": "opaque drop"},
        [("opaque drop", Certainty.CERTAIN), ("", Certainty.CERTAIN)],
        False,
    ),
    # Chains.
    ({"base": "jump a; drop", "a": "never accept"}, [("drop", Certainty.CERTAIN)], False),
    ({"base": "jump a; drop", "a": "accept"}, [], True),
    ({"base": "jump a", "a": "return; drop"}, [], True),
    ({"base": "goto a; drop", "a": ""}, [], True),
    ({"policy": "goto a; accept", "a": ""}, [("", Certainty.CERTAIN)], False),
    (
        {"base": "jump a; drop", "a": "goto b; accept", "b": ""},
        [("drop", Certainty.CERTAIN)],
        False,
    ),
    ({"base": "return; drop"}, [], True),
    ({"policy": "return; accept"}, [("", Certainty.CERTAIN)], False),
    ({"base": "opaque jump a", "a": "drop"}, [("drop", Certainty.UNDECIDED)], True),
    ({"base": "opaque jump a; drop", "a": "accept"}, [("drop", Certainty.UNDECIDED)], True),
    ({"base": "opaque goto a; drop", "a": ""}, [("drop", Certainty.UNDECIDED)], True),
    ({"base": "jump a; accept", "a": "opaque return; drop"}, [("drop", Certainty.UNDECIDED)], True),
    ({"policy": "jump a", "a": "opaque return; accept"}, [("", Certainty.UNDECIDED)], True),
    ({"base": "opaque goto a", "a": "source drop"}, [("source drop", Certainty.UNDECIDED)], True),
    # Marks: what an undecided rule sets is undecided too.
    ({"base": "mark; marked drop"}, [("marked drop", Certainty.CERTAIN)], False),
    ({"base": "marked drop"}, [], True),
    ({"base": "opaque mark; marked drop"}, [("marked drop", Certainty.UNDECIDED)], True),
    ({"base": "jump a; marked drop", "a": "mark"}, [("marked drop", Certainty.CERTAIN)], False),
    # Other ends.
    ({"base": "notrack; accept"}, [("notrack", Certainty.CERTAIN)], True),
    ({"base": "opaque notrack"}, [("opaque notrack", Certainty.UNDECIDED)], True),
    ({"base": "queue; drop"}, [("queue", Certainty.CERTAIN)], False),
    # A map whose key is unknown may have either verdict.
    ({"base": "source drop accept"}, [("source drop accept", Certainty.DEPENDS)], True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case[0]))
def test_a_chain(case: tuple[dict[str, str], list[tuple[str, Certainty]], bool]) -> None:
    chains, findings, passes = case
    table = Table(**chains)
    result = evaluate(table.chain(next(iter(chains))), table, PACKET)
    assert [(each.place, each.certainty) for each in result.findings] == findings
    assert result.passes is passes


def test_rules_beyond_the_bound_are_undecided() -> None:
    table = Table(base="never drop; " * 10)
    budget = Budget(8)
    result = evaluate(table.chain("base"), table, PACKET, budget)
    assert [each.certainty for each in result.findings] == [Certainty.UNDECIDED]
    assert result.findings[0].doubts[0].what == f"more than {MOST_RULES:,} rules for all packets"
    assert result.passes


def test_a_chain_that_was_not_read_to_its_end_is_undecided() -> None:
    table = Table(base="never drop")
    chain = msgspec.structs.replace(table.chain("base"), complete=False)
    assert [each.certainty for each in evaluate(chain, table, PACKET).findings] == [
        Certainty.UNDECIDED
    ]
    # A rule before the bound decides.
    chain = msgspec.structs.replace(Table(base="drop").chain("base"), complete=False)
    result = evaluate(chain, table, PACKET)
    assert [each.certainty for each in result.findings] == [Certainty.CERTAIN]


def test_chains_that_lead_to_many_others_are_bounded() -> None:
    chains = {f"c{n}": f"jump c{n + 1}; " * 9 for n in range(12)}
    table = Table(**chains, c12="never drop")
    budget = Budget(5_000)
    result = evaluate(table.chain("c0"), table, PACKET, budget)
    assert result.findings[0].certainty is Certainty.UNDECIDED
    # Each level of jumps ends at its next rule.
    assert budget.left > -1_000


def test_doubtful_rules_are_not_all_kept() -> None:
    table = Table(base="source drop; " * 500)
    assert len(evaluate(table.chain("base"), table, PACKET).findings) == 20
