"""Compare the kernel state of one Service, and of the base rules, with the desired state: no I/O.

A Service's chains are identified by their names. The rules that lead to them are identified by
their text, in any branch of the tree of frontends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from pyproxy.dataplane.interface import NodeRouting, StateDiff
from pyproxy.dataplane.iptables import base_rules
from pyproxy.dataplane.iptables.base_rules import FILTER, NAT, IptablesOptions
from pyproxy.dataplane.iptables.committed_state import Saved
from pyproxy.dataplane.iptables.frontend_trees import FrontendTrees
from pyproxy.dataplane.iptables.rules import Rule
from pyproxy.dataplane.iptables.services import View, compile_service
from pyproxy.model.address import Family, family_of
from pyproxy.policy.routing import ServiceRouting
from pyproxy.xtables import kube_names
from pyproxy.xtables.saved import EMPTY, SavedTable, target

_TREES = (kube_names.SERVICE_TREE, kube_names.REFUSED_TREE)
_ROOTS = (kube_names.SERVICES, kube_names.EXTERNAL_SERVICES)


def compare(
    saved: Saved, wanted: ServiceRouting, options: IptablesOptions, node: NodeRouting
) -> StateDiff:
    """Compare a read-back with the desired state of a Service."""
    missing: list[str] = []
    extra: list[str] = []
    for family, tables in saved.items():
        view = View(options, base_rules.pods_of(family, options, node.pod_networks))
        part = compile_service(wanted, family, view)
        # Without an address, no packet can reach a node port.
        at_node = family in options.all_local or any(
            family_of(each) is family for each in node.node_port_addresses
        )
        for table, chains, leaves in (
            (NAT, part.nat, part.served | part.node_served if at_node else part.served),
            (FILTER, part.filter, part.refused | part.node_refused if at_node else part.refused),
        ):
            where = f"IPv{family.value} {table}: "
            held = tables.get(table, EMPTY)
            desired = {_line(chain, rule.text) for chain, rules in chains.items() for rule in rules}
            present = {
                _line(chain, text) for chain in chains for text in held.chains.get(chain, ())
            }
            missing += [where + line for line in sorted(desired - present)]
            missing += [
                f"{where}chain {chain}, in this order" for chain in _reordered(held, chains)
            ]
            extra += [where + line for line in sorted(present - desired)]
            leaf_rules = {rule.text for rule in leaves.values()}
            paths = _find_paths(held, chains, leaf_rules)
            missing += [f"{where}a rule {text}" for text in sorted(leaf_rules - paths.last.keys())]
            missing += [
                f"{where}a rule that leads to {chain}" for chain in sorted(_unreachable(paths))
            ]
            extra += [
                where + _line(chain, text)
                for text, chain in paths.last.items()
                if text not in leaf_rules
            ]
    return StateDiff(tuple(missing), tuple(extra), check_base_rules(saved, options, node), "rule")


def check_base_rules(saved: Saved, options: IptablesOptions, node: NodeRouting) -> tuple[str, ...]:
    """Return a line for each difference in the base rules of all families."""
    found: list[str] = []
    for family, tables in saved.items():
        view = View(options, base_rules.pods_of(family, options, node.pod_networks))
        found += _check_family(family, tables, options, view)
    return tuple(found)


def _line(chain: str, text: str) -> str:
    return f"-A {chain} {text}"


def _reordered(held: SavedTable, chains: Mapping[str, tuple[Rule, ...]]) -> Iterator[str]:
    """Yield chains that have the right rules in another order, and empty chains that are absent."""
    for chain, rules in chains.items():
        present, desired = held.chains.get(chain), [rule.text for rule in rules]
        if present != desired and sorted(present or ()) == sorted(desired):
            yield chain


class _Paths(msgspec.Struct, frozen=True):
    """The paths of packets to a Service.

    `last` has the rules that lead from a tree to the Service's chains, each with its chain; `above`
    has the chain that leads to each branch of a tree.
    """

    last: Mapping[str, str]
    above: Mapping[str, str]


def _find_paths(
    held: SavedTable, chains: Mapping[str, tuple[Rule, ...]], leaf_rules: set[str]
) -> _Paths:
    last: dict[str, str] = {}
    above: dict[str, str] = {}
    for chain, texts in held.chains.items():
        if chain in chains:
            continue
        for text in texts:
            # Most rules of a node translate to endpoints, and name no chain.
            to = target(text) if kube_names.PREFIX in text else ""
            if text in leaf_rules or to in chains:
                last[text] = chain
            elif to.startswith(_TREES) and chain.startswith((*_TREES, *_ROOTS)):
                above[to] = chain
    return _Paths(last, above)


def _unreachable(paths: _Paths) -> set[str]:
    """Return the branches on the paths to a Service that no rule leads to."""
    found = set()
    for chain in paths.last.values():
        top = chain
        # The loop ends, because the kernel rejects chains whose jumps form a cycle.
        while top in paths.above:
            top = paths.above[top]
        if top.startswith(_TREES):
            found.add(top)
    return found


def _check_family(
    family: Family, tables: Mapping[str, SavedTable], options: IptablesOptions, view: View
) -> Iterator[str]:
    roots = FrontendTrees(family).changed((), ()).chains
    for table, chains in base_rules.base_chains(family, options, view.pods).items():
        held = tables.get(table, EMPTY)
        for chain, rules in chains.items():
            # The rules in the root of a tree depend on Services.
            is_root = chain in roots.get(table, {})
            if chain not in held.chains:
                yield f"IPv{family.value} {table}: chain {chain} is missing"
            elif not (is_root or held.chains[chain] == [rule.text for rule in rules]):
                yield f"IPv{family.value} {table}: chain {chain} has other rules than it should"
    for table, hook, rule in base_rules.jumps(options):
        if rule.text not in tables.get(table, EMPTY).chains.get(hook, ()):
            yield f"IPv{family.value} {table}: {hook} lacks the rule {rule.text}"
