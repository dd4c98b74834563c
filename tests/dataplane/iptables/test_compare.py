"""Compare one Service among others with what iptables-save would print."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given

from pyproxy.dataplane.interface import NodeRouting, StateDiff
from pyproxy.dataplane.iptables import committed_state
from pyproxy.dataplane.iptables.base_rules import IptablesOptions
from pyproxy.dataplane.iptables.compare import compare
from pyproxy.model.address import Family, parse_network
from pyproxy.policy.routing import ServiceRouting
from pyproxy.xtables.saved import HOOKS, SavedTable, target
from tests.dataplane.nftables.scenes import Scene, scenes
from tests.dataplane.nftables.test_dataplane import numbered

NODE = NodeRouting((parse_network("10.128.0.0/9"),))
Kernel = dict[Family, dict[str, SavedTable]]


def kernel(*routings: ServiceRouting, node: NodeRouting = NODE) -> Kernel:
    """Return what iptables-save would print with these Services programmed."""
    return {
        family: {
            name: SavedTable(
                {of: [rule.text for rule in rules] for of, rules in chains.items()},
                dict.fromkeys(HOOKS, "ACCEPT"),
            )
            for name, chains in committed_state.compile_all(
                IptablesOptions(), routings, node, family
            ).items()
        }
        for family in Family
    }


def service_chain(held: Kernel) -> tuple[str, list[str]]:
    """The chain of the only Service, with its rules."""
    ((name, texts),) = (
        (of, texts)
        for of, texts in held[Family.IPV4]["nat"].chains.items()
        if of.startswith("KUBE-SVC-")
    )
    assert isinstance(texts, list)
    return name, texts


@given(scenes())
def test_a_service_in_the_desired_state_has_no_difference(scene: Scene) -> None:
    routings = list(scene.undivided().values())
    held = kernel(*routings)
    for routing in routings:
        assert compare(held, routing, IptablesOptions(), NODE) == StateDiff(kind="rule")


@pytest.mark.parametrize("fault", ["rule", "extra rule", "order", "chain", "leaf", "extra leaf"])
def test_each_difference_of_a_service_is_named(fault: str) -> None:
    wanted = numbered(1)
    held = kernel(wanted)
    chains = held[Family.IPV4]["nat"].chains
    name, texts = service_chain(held)
    first = texts[0]
    ((branch, leaf),) = (
        (of, text) for of, found in chains.items() for text in found if target(text) == name
    )
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    match fault:
        case "rule":
            texts.remove(first)
            missing = (f"IPv4 nat: -A {name} {first}",)
        case "extra rule":
            texts.append("-j ACCEPT")
            extra = (f"IPv4 nat: -A {name} -j ACCEPT",)
        case "order":
            texts.reverse()
            missing = (f"IPv4 nat: chain {name}, in this order",)
        case "chain":
            missing = tuple(sorted(f"IPv4 nat: -A {name} {text}" for text in texts))
            held[Family.IPV4]["nat"] = without(held[Family.IPV4]["nat"], name)
        case "leaf":
            chains[branch].remove(leaf)
            missing = (f"IPv4 nat: a rule {leaf}",)
        case "extra leaf":
            chains[branch].append(f"-j {name}")
            extra = (f"IPv4 nat: -A {branch} -j {name}",)
    assert compare(held, wanted, IptablesOptions(), NODE) == StateDiff(missing, extra, kind="rule")


def test_a_branch_that_no_rule_leads_to_is_a_difference_of_every_service_in_it() -> None:
    wanted = [numbered(each) for each in range(40)]
    held = kernel(*wanted)
    chains = held[Family.IPV4]["nat"].chains
    above = {target(text): (of, text) for of, texts in chains.items() for text in texts}
    cut = next(to for to, (of, _) in above.items() if {to[:8], of[:8]} == {"KUBE-IP-"})
    behind = {name for name in above if cut in _path(name, above)}
    of, leaf = above[cut]
    chains[of].remove(leaf)
    missing = (f"IPv4 nat: a rule that leads to {cut}",)
    diffs = [compare(held, each, IptablesOptions(), NODE) for each in wanted]
    assert {each.missing for each in diffs} == {(), missing}
    services = {name for name in behind if name.startswith("KUBE-SVC-")}
    assert sum(bool(each) for each in diffs) == len(services)


def _path(name: str, above: dict[str, tuple[str, str]]) -> Iterator[str]:
    while name in above:
        yield name
        name = above[name][0]


def test_differences_of_the_base_rules_are_named() -> None:
    wanted = numbered(1)
    held = kernel(wanted)
    nat = held[Family.IPV6]["nat"]
    held[Family.IPV6]["nat"] = without(nat, "KUBE-MARK-MASQ", "PREROUTING")
    diff = compare(held, wanted, IptablesOptions(), NODE)
    assert (diff.missing, diff.extra) == ((), ())
    assert diff.rules == (
        "IPv6 nat: chain KUBE-MARK-MASQ is missing",
        "IPv6 nat: PREROUTING lacks the rule -m comment --comment "
        '"kubernetes service portals" -j KUBE-SERVICES',
    )


def without(table: SavedTable, *names: str) -> SavedTable:
    chains = {of: texts for of, texts in table.chains.items() if of not in names}
    return SavedTable(chains, table.policies)
