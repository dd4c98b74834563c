"""Endpoints are picked evenly, and a packet meets few rules however many endpoints there are."""

from __future__ import annotations

from fractions import Fraction

import pytest

from pyproxy.dataplane.iptables.rules import CERTAIN, Jump, Rule, Translate
from pyproxy.dataplane.iptables.services import MANY, pick
from pyproxy.model.address import Backend

Picked = tuple[Backend, Fraction, int]


def backends(count: int) -> list[Backend]:
    return [Backend(bytes((10, 244, n >> 8, n & 255, 31, 144))) for n in range(count)]


def chances(count: int) -> list[Picked]:
    """Each endpoint, its probability, and the rules that a packet meets before it."""
    rules, groups = pick(
        "KUBE-SVC-X", backends(count), lambda to, share: Rule(share=share, target=Translate(to))
    )
    found: list[Picked] = []

    def walk(rules: tuple[Rule, ...], left: Fraction, met: int) -> None:
        for number, rule in enumerate(rules, met + 1):
            share = left * (Fraction(rule.share, CERTAIN) if rule.share else 1)
            left -= share
            if isinstance(rule.target, Jump):
                walk(groups[rule.target.chain], share, number)
            else:
                assert isinstance(rule.target, Translate)
                found.append((rule.target.backend, share, number))
        assert not left

    walk(rules, Fraction(1), 0)
    return found


@pytest.mark.parametrize("count", [1, 2, 10, MANY, MANY + 1, 100, 1000])
def test_endpoints_are_picked_evenly(count: int) -> None:
    found = chances(count)
    assert sorted(to for to, _, _ in found) == backends(count)
    assert all(abs(share * count - 1) < Fraction(1, 1 << 20) for _, share, _ in found)


def test_names_of_groups_have_at_most_two_digits() -> None:
    _, groups = pick(
        "KUBE-SVC-X", backends(20_000), lambda to, share: Rule(share=share, target=Translate(to))
    )
    assert len(groups) == 256
    assert max(map(len, groups)) == len("KUBE-SVC-X-ff")


@pytest.mark.parametrize(("count", "most"), [(MANY, 32), (100, 35), (1000, 110)])
def test_a_packet_meets_fewer_rules_than_there_are_endpoints(count: int, most: int) -> None:
    assert max(met for _, _, met in chances(count)) <= most


def test_a_new_endpoint_changes_the_chain_of_its_group_only() -> None:
    def groups(count: int) -> dict[str, tuple[Rule, ...]]:
        return pick(
            "KUBE-SVC-X", backends(count), lambda to, share: Rule(share=share, target=Translate(to))
        )[1]

    before, after = groups(100), groups(101)
    assert sum(before.get(name) != rules for name, rules in after.items()) == 1
