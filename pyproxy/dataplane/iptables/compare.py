"""What the kernel holds of one Service, held against what it should: no I/O.

A Service's chains are known by their names, and the rules that lead there by their text, in
whichever branch of the tree of frontends they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from pyproxy.dataplane.interface import NodeRouting, StateDiff
from pyproxy.dataplane.iptables import fixed, names
from pyproxy.dataplane.iptables.committed_state import Saved
from pyproxy.dataplane.iptables.fixed import FILTER, NAT, Options
from pyproxy.dataplane.iptables.frontend_trees import FrontendTrees
from pyproxy.dataplane.iptables.rules import Rule
from pyproxy.dataplane.iptables.saved import EMPTY, SavedTable, target
from pyproxy.dataplane.iptables.services import View, compile_service
from pyproxy.model.address import Family
from pyproxy.policy.routing import ServiceRouting

_TREES = (names.SERVICE_TREE, names.REFUSED_TREE)
_ROOTS = (names.SERVICES, names.EXTERNAL_SERVICES)


def compare(saved: Saved, wanted: ServiceRouting, options: Options, node: NodeRouting) -> StateDiff:
    """Compare what iptables-save said with what a Service should have."""
    missing: list[str] = []
    extra: list[str] = []
    for family, tables in saved.items():
        view = View(options, fixed.pods(family, options, node.pod_networks))
        part = compile_service(wanted, family, view)
        for name, chains, leaves in (
            (NAT, part.nat, part.served),
            (FILTER, part.filter, part.refused),
        ):
            before = f"IPv{family.value} {name}: "
            held = tables.get(name, EMPTY)
            asked = {_line(of, rule.text) for of, rules in chains.items() for rule in rules}
            there = {_line(of, text) for of in chains for text in held.chains.get(of, ())}
            missing += [before + line for line in sorted(asked - there)]
            missing += [before + f"chain {of}, in its order" for of in _shuffled(held, chains)]
            extra += [before + line for line in sorted(there - asked)]
            ways = {rule.text for rule in leaves.values()}
            found = _ways(held, chains, ways)
            missing += [before + f"a rule {text}" for text in sorted(ways - found.last.keys())]
            missing += [before + f"a rule that leads to {of}" for of in sorted(_cut_off(found))]
            extra += [
                before + _line(of, text) for text, of in found.last.items() if text not in ways
            ]
    return StateDiff(tuple(missing), tuple(extra), check_base_rules(saved, options, node), "rule")


def check_base_rules(saved: Saved, options: Options, node: NodeRouting) -> tuple[str, ...]:
    """Name what is not as it should be of the chains that are there whatever Services there are."""
    found: list[str] = []
    for family, tables in saved.items():
        view = View(options, fixed.pods(family, options, node.pod_networks))
        found += _amiss(family, tables, options, view)
    return tuple(found)


def _line(of: str, text: str) -> str:
    return f"-A {of} {text}"


def _shuffled(held: SavedTable, chains: Mapping[str, tuple[Rule, ...]]) -> Iterator[str]:
    """Name chains that have the right rules, or none, and are not as they should be."""
    for of, rules in chains.items():
        there, asked = held.chains.get(of), [rule.text for rule in rules]
        if there != asked and sorted(there or ()) == sorted(asked):
            yield of


class _Ways(msgspec.Struct, frozen=True):
    """How packets come to a Service.

    `last` are the rules that take them from the tree, and those that lead here besides, each with
    its chain; `above` has the chain that leads to each branch of the tree.
    """

    last: Mapping[str, str]
    above: Mapping[str, str]


def _ways(held: SavedTable, chains: Mapping[str, tuple[Rule, ...]], asked: set[str]) -> _Ways:
    last: dict[str, str] = {}
    above: dict[str, str] = {}
    for of, texts in held.chains.items():
        if of in chains:
            continue
        for text in texts:
            # Most rules of a node lead to endpoints, and need no closer look.
            to = target(text) if names.PREFIX in text else ""
            if text in asked or to in chains:
                last[text] = of
            elif to.startswith(_TREES) and of.startswith((*_TREES, *_ROOTS)):
                above[to] = of
    return _Ways(last, above)


def _cut_off(ways: _Ways) -> set[str]:
    """Find the branches on the way to a Service that no rule leads to."""
    found = set()
    for of in ways.last.values():
        at = of
        while at in ways.above:
            at = ways.above[at]
        if at.startswith(_TREES):
            found.add(at)
    return found


def _amiss(
    family: Family, tables: Mapping[str, SavedTable], options: Options, view: View
) -> Iterator[str]:
    frontend_trees = FrontendTrees(family).changed((), ()).chains
    for name, chains in fixed.chains(family, options, view.pods).items():
        held = tables.get(name, EMPTY)
        for of, rules in chains.items():
            grows = of in frontend_trees.get(name, {})
            if of not in held.chains or not (grows or held.chains[of] == [r.text for r in rules]):
                yield f"IPv{family.value} {name}: chain {of} is not there, or not as it should be"
    for name, hook, rule in fixed.jumps(options):
        if rule.text not in tables.get(name, EMPTY).chains.get(hook, ()):
            yield f"IPv{family.value} {name}: {hook} lacks {rule.text}"
