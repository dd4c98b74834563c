"""Rules with a target or an expression that pyproxy does not know: they may end a packet's way."""

from __future__ import annotations

import pytest

from pyproxy.hostnet.firewall import xt_targets
from pyproxy.hostnet.firewall.evaluator import Certainty, evaluate
from pyproxy.hostnet.firewall.hook_packet import Hook, HookPacket
from pyproxy.hostnet.firewall.nft_rule import NftRule
from pyproxy.hostnet.firewall.nft_tables import TableReader
from pyproxy.hostnet.firewall.verdicts import ACCEPT, DROP, Action, Chain, Rule, Verdict
from pyproxy.model.address import Family, Port, parse_address
from pyproxy.netlink.attributes import nested, string
from pyproxy.netlink.bounded_dump import BoundedNetfilter

PACKET = HookPacket(
    Family.IPV4,
    6,
    parse_address("10.244.1.11"),
    parse_address("10.244.2.11"),
    45_678,
    Port(8080),
    Hook.FORWARD,
)
NAMES = ["DNPT", "TARPIT"]


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_target_may_end_a_packets_way(name: str) -> None:
    found = xt_targets.target(name, 0, b"", PACKET)
    assert found.packet is PACKET
    assert found.verdict == Verdict(Action.DIVERT, note=f"to target {name}")
    assert [each.what for each in found.doubts] == [f"target {name}"]


def test_a_revision_of_another_layout_may_end_a_packets_way() -> None:
    found = xt_targets.target("MARK", 9, b"", PACKET)
    assert found.verdict
    assert found.doubts


@pytest.mark.parametrize(
    ("policy", "certainties"),
    [
        (ACCEPT, [Certainty.UNDECIDED]),
        # No way through the chain is left.
        (DROP, [Certainty.CERTAIN, Certainty.CERTAIN]),
    ],
)
def test_an_unknown_expression_may_end_a_packets_way(
    policy: Verdict, certainties: list[Certainty]
) -> None:
    table = TableReader(BoundedNetfilter(), 2, "t")
    rule: Rule = NftRule(7, nested(1, string(1, "teleport")), table)
    result = evaluate(Chain("ip t", "c", [rule], policy), table, PACKET)
    assert [each.certainty for each in result.findings] == certainties
    assert result.findings[0].note == "to expression teleport"
