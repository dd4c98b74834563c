"""Rules drawn at random: the evaluation finds for real datagrams what the kernel does with them."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from pyproxy.hostnet.firewall.evaluator import ChainResult
from pyproxy.model.address import Family
from tests.hostnet.firewall.generated_rules import (
    IP_SETS,
    draw_datagram,
    draw_nft_ruleset,
    draw_xt_ruleset,
)
from tests.hostnet.firewall.real_packets import Rules, rules_of_input

pytestmark = [pytest.mark.kernel, pytest.mark.packets]

_DATAGRAMS = 40


@pytest.fixture(scope="module")
def rules() -> Iterator[Rules]:
    with rules_of_input() as made:
        made.namespace.run(["ipset", "restore"], text=IP_SETS)
        yield made


def check(result: ChainResult, passes: bool) -> None:
    assert not [each for each in result.findings if each.doubts], result.findings
    assert (result.passes, not result.findings) == (passes, passes), result.findings


@pytest.mark.parametrize("seed", range(20))
def test_rules_of_nf_tables(rules: Rules, seed: int) -> None:
    random = Random(seed)
    text = draw_nft_ruleset(random)
    rules.nft(text)
    sent = [draw_datagram(random) for _ in range(_DATAGRAMS)]
    for result, passes in zip(rules.evaluate_nft(sent), rules.send(sent), strict=True):
        check(result, passes)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("flavour", ["legacy", "nft"])
def test_rules_of_iptables(rules: Rules, flavour: str, seed: int) -> None:
    random = Random(seed)
    rules.nft("flush ruleset")
    program = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
    for family, name in program.items():
        text = draw_xt_ruleset(random, family is Family.IPV6)
        rules.namespace.run([f"{name}-{flavour}-restore"], text=text)
    sent = [draw_datagram(random) for _ in range(_DATAGRAMS)]
    results = rules.evaluate_xtables(sent, flavour == "legacy")
    try:
        for result, passes in zip(results, rules.send(sent), strict=True):
            check(result, passes)
    finally:
        for name in program.values():
            rules.namespace.run([f"{name}-{flavour}", "-P", "INPUT", "ACCEPT"])
            rules.namespace.run([f"{name}-{flavour}", "-F"])
