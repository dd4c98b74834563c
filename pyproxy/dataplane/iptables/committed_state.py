"""The state that was committed last, and plans from it or from a read-back: no I/O."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from pyproxy.dataplane.committed_state import CommittedState
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.iptables import base_rules
from pyproxy.dataplane.iptables.base_rules import FILTER, NAT, TABLES, IptablesOptions
from pyproxy.dataplane.iptables.frontend_trees import FrontendTrees
from pyproxy.dataplane.iptables.plan import (
    IptablesPlan,
    TableChange,
    TableName,
    diff_chains,
    diff_saved,
)
from pyproxy.dataplane.iptables.rules import Rule
from pyproxy.dataplane.iptables.services import Part, View, compile_service
from pyproxy.model.address import Family
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import ServiceRouting
from pyproxy.xtables.saved import EMPTY, SavedTable

Tables = dict[str, dict[str, tuple[Rule, ...]]]
Saved = Mapping[Family, Mapping[str, SavedTable]]
"""The read-back of each family, by table."""


# An nfacct object, too, may be what the kernel rejects. Other targets are chains.
_EXTENSION = re.compile(r"-m (?:nfacct --nfacct-name +)?(\S+)|-j ([A-Z]+)(?: |$)")


def _leaves(part: Part) -> Iterator[Rule]:
    for leaves in (part.served, part.refused, part.node_served, part.node_refused):
        yield from leaves.values()


def _rules(part: Part) -> Iterator[Rule]:
    for chains in (part.nat, part.filter):
        for rules in chains.values():
            yield from rules


class CommittedTables(CommittedState[Family]):
    """The committed state of some families, with the trees of frontends."""

    def __init__(self, options: IptablesOptions, families: Collection[Family]) -> None:
        # The trees count the users of cluster IPs, the only objects that Services share.
        super().__init__(lambda _: ())
        self._options = options
        self._families = families
        self._trees = {family: self._no_trees(family) for family in families}
        self.rules: Mapping[TableName, int] = {}

    def use(self, options: IptablesOptions) -> None:
        """Compile with other options from now on; only a full plan shows what they change."""
        self._options = options

    def routing(self, name: ObjectName) -> ServiceRouting | None:
        """Return the committed routing of a Service."""
        return self.services.get(name)

    def plan(
        self, services: Mapping[ObjectName, ServiceRouting | None], node: NodeRouting | None
    ) -> IptablesPlan:
        """Plan from the last commit."""
        changed = {
            name: routing for name, routing in services.items() if self.routing(name) != routing
        }
        changes: dict[TableName, TableChange] = {}
        trees = {}
        rules = dict(self.rules)
        for family, new_trees, before, after in self._compile_changes(changed, node):
            trees[family] = new_trees
            for table in TABLES:
                if change := diff_chains(before[table], after[table]):
                    changes[family, table] = change
                    rules[family, table] = rules.get((family, table), 0) + change.growth.rules
        return IptablesPlan(changes, changed, trees, node, rules=rules)

    def undo(self, plan: IptablesPlan) -> IptablesPlan:
        """Plan back to the last commit, after some tables of `plan` were written.

        It may be written to the other tables as well, where it changes nothing.
        """
        changes: dict[TableName, TableChange] = {}
        for family, _, before, after in self._compile_changes(plan.services, plan.node):
            for table in TABLES:
                if change := diff_chains(after[table], before[table]):
                    changes[family, table] = change
        return IptablesPlan(changes, {}, {}, rules=self.rules)

    def _compile_changes(
        self, changed: Mapping[ObjectName, ServiceRouting | None], node: NodeRouting | None
    ) -> Iterator[tuple[Family, FrontendTrees, Tables, Tables]]:
        """Yield each family's trees afterwards, and the chains concerned before and after."""
        new_node = node if node is not None else self.node
        for family in self._families:
            before, after = self._view(family, self.node), self._view(family, new_node)
            # The pod networks stand in every Service's chains.
            names = changed.keys() if before == after else changed.keys() | self.services.keys()
            # Only routings are remembered: the changed Services' old chains are compiled again.
            old = [
                compile_service(routing, family, before)
                for name in names
                if (routing := self.routing(name))
            ]
            new = [
                compile_service(routing, family, after)
                for name in names
                if (routing := changed[name] if name in changed else self.routing(name))
            ]
            old_trees = self._trees[family]
            # A frontend may move between Services, so the trees change for all of them at once.
            new_trees = old_trees.changed(old, new, new_node.node_port_addresses)
            chains = self._tables(family, before, old, old_trees)
            yield family, new_trees, chains, self._tables(family, after, new, new_trees)

    def plan_full(
        self, services: Iterable[ServiceRouting], node: NodeRouting, saved: Saved
    ) -> IptablesPlan:
        """Plan from a read-back to the whole desired state."""
        desired = {routing.name: routing for routing in services}
        changes: dict[TableName, TableChange] = {}
        trees = {}
        rules: dict[TableName, int] = {}
        for family in self._families:
            view = self._view(family, node)
            parts = [compile_service(each, family, view) for each in desired.values()]
            trees[family] = self._no_trees(family).changed((), parts, node.node_port_addresses)
            tables = self._tables(family, view, parts, trees[family])
            for table in TABLES:
                rules[family, table] = sum(len(each) for each in tables[table].values())
                jumps = tuple(
                    (hook, rule)
                    for where, hook, rule in base_rules.jumps(self._options)
                    if where == table
                )
                held = saved[family].get(table, EMPTY)
                if change := diff_saved(held, tables[table], jumps):
                    changes[family, table] = change
        return IptablesPlan(changes, desired, trees, node, full=True, rules=rules)

    def find_owners(
        self, routings: Iterable[ServiceRouting], node: NodeRouting, lines: Iterable[str]
    ) -> dict[ObjectName, str]:
        """Return the Services that lines of iptables-restore's input belong to, each with a line.

        Lines of the base rules belong to none.
        """
        of_chains: dict[str, str] = {}
        of_texts: dict[str, str] = {}
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == "-A":
                chain, _, text = rest.partition(" ")
                of_chains[chain] = of_texts[text] = line
        found: dict[ObjectName, str] = {}
        if not of_chains:
            return found
        for routing in routings:
            for part in self._parts(routing, node):
                # A leaf is in a chain of the tree, whose name identifies no Service.
                at_fault = [
                    of_chains[each] for each in (*part.nat, *part.filter) if each in of_chains
                ]
                at_fault += [of_texts[r.text] for r in _leaves(part) if r.text in of_texts]
                if at_fault:
                    found.setdefault(routing.name, at_fault[0])
        return found

    def extensions(self, routing: ServiceRouting, node: NodeRouting) -> frozenset[str]:
        """Return the matches and targets in the rules of a Service, by family."""
        return frozenset(
            f"{family.label} {name}"
            for family, part in zip(self._families, self._parts(routing, node), strict=True)
            for rule in (*_rules(part), *_leaves(part))
            for name in map("".join, _EXTENSION.findall(rule.text))
        )

    def _parts(self, routing: ServiceRouting, node: NodeRouting) -> Iterator[Part]:
        for family in self._families:
            yield compile_service(routing, family, self._view(family, node))

    def remember_plan(self, plan: IptablesPlan) -> None:
        """Record a plan that was committed."""
        self.remember(plan.services, {}, plan.node, whole=plan.full)
        self._trees.update(plan.trees)
        self.rules = plan.rules

    def _no_trees(self, family: Family) -> FrontendTrees:
        return FrontendTrees(family, all_local=family in self._options.all_local)

    def _view(self, family: Family, node: NodeRouting) -> View:
        return View(self._options, base_rules.pods_of(family, self._options, node.pod_networks))

    def _tables(
        self, family: Family, view: View, parts: Iterable[Part], trees: FrontendTrees
    ) -> Tables:
        tables = base_rules.base_chains(family, self._options, view.pods)
        for table, chains in trees.chains.items():
            tables[table] |= chains
        for part in parts:
            tables[NAT].update(part.nat)
            tables[FILTER].update(part.filter)
        return tables


def compile_all(
    options: IptablesOptions, services: Iterable[ServiceRouting], node: NodeRouting, family: Family
) -> Tables:
    """Return all chains that one family's tables should have, with the jumps in built-in chains."""
    plan = CommittedTables(options, (family,)).plan_full(services, node, {family: {}})
    tables: Tables = {table: {} for table in TABLES}
    for (_, table), change in plan.changes.items():
        tables[table] = dict(change.chains)
        for hook, rule in change.jumps:
            tables[table][hook] = (*tables[table].get(hook, ()), rule)
    return tables
