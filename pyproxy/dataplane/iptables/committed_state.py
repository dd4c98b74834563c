"""What has been committed, and the plans from there to somewhere else: no I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.iptables import fixed
from pyproxy.dataplane.iptables.fixed import FILTER, NAT, TABLES, Options
from pyproxy.dataplane.iptables.frontend_trees import FrontendTrees
from pyproxy.dataplane.iptables.plan import (
    IptablesPlan,
    TableChange,
    TableName,
    compare,
    compare_saved,
)
from pyproxy.dataplane.iptables.rules import Rule
from pyproxy.dataplane.iptables.saved import EMPTY, SavedTable
from pyproxy.dataplane.iptables.services import Part, View, compile_service
from pyproxy.model.address import Family
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import ServiceRouting

Tables = dict[str, dict[str, tuple[Rule, ...]]]
Saved = Mapping[Family, Mapping[str, SavedTable]]
"""What iptables-save said of each family, by table."""


class CommittedState:
    """The Services, the node and the trees that were committed last, in the families we serve."""

    def __init__(self, options: Options, families: Collection[Family]) -> None:
        self._options = options
        self._families = families
        self._node = NodeRouting()
        self._programmed: dict[ObjectName, ServiceRouting] = {}
        self._forests = {family: FrontendTrees(family) for family in families}
        self.rules: Mapping[TableName, int] = {}

    def routing(self, name: ObjectName) -> ServiceRouting | None:
        """Give what is programmed of a Service."""
        return self._programmed.get(name)

    def plan(
        self, services: Mapping[ObjectName, ServiceRouting | None], node: NodeRouting | None
    ) -> IptablesPlan:
        """Plan from what was committed last."""
        wanted = {
            name: routing for name, routing in services.items() if self.routing(name) != routing
        }
        changes: dict[TableName, TableChange] = {}
        forests = {}
        rules = dict(self.rules)
        for family, frontend_trees, held, asked in self._steps(wanted, node):
            forests[family] = frontend_trees
            for table in TABLES:
                if change := compare(held[table], asked[table]):
                    changes[family, table] = change
                    rules[family, table] = rules.get((family, table), 0) + change.growth.rules
        return IptablesPlan(changes, wanted, forests, node, rules=rules)

    def undo(self, plan: IptablesPlan) -> IptablesPlan:
        """Plan back to what was committed last, where some tables of `plan` have been written.

        It may be written to the other tables as well, for it changes nothing there.
        """
        changes: dict[TableName, TableChange] = {}
        for family, _, held, asked in self._steps(plan.wanted, plan.node):
            for table in TABLES:
                if change := compare(asked[table], held[table]):
                    changes[family, table] = change
        return IptablesPlan(changes, {}, {}, rules=self.rules)

    def _steps(
        self, wanted: Mapping[ObjectName, ServiceRouting | None], node: NodeRouting | None
    ) -> Iterator[tuple[Family, FrontendTrees, Tables, Tables]]:
        """Give each family's forest as it is to be, and the chains concerned before and after."""
        then = node if node is not None else self._node
        for family in self._families:
            before, after = self._view(family, self._node), self._view(family, then)
            names = wanted.keys() if before == after else wanted.keys() | self._programmed.keys()
            old = [compile_service(each, family, before) for each in self._held(names)]
            new = [
                compile_service(each, family, after)
                for name in names
                if (each := wanted.get(name, self.routing(name) if name not in wanted else None))
            ]
            frontend_trees = self._forests[family]
            grown = frontend_trees.changed(old, new)
            held = self._tables(family, before, old, frontend_trees)
            yield family, grown, held, self._tables(family, after, new, grown)

    def plan_whole(
        self, services: Iterable[ServiceRouting], node: NodeRouting, saved: Saved
    ) -> IptablesPlan:
        """Plan from what the kernel holds to the whole desired state."""
        wanted = {routing.name: routing for routing in services}
        changes: dict[TableName, TableChange] = {}
        forests = {}
        rules: dict[TableName, int] = {}
        for family in self._families:
            view = self._view(family, node)
            parts = [compile_service(each, family, view) for each in wanted.values()]
            forests[family] = FrontendTrees(family).changed((), parts)
            tables = self._tables(family, view, parts, forests[family])
            for table in TABLES:
                rules[family, table] = sum(len(each) for each in tables[table].values())
                jumps = tuple(
                    (hook, rule)
                    for where, hook, rule in fixed.jumps(self._options)
                    if where == table
                )
                held = saved[family].get(table, EMPTY)
                if change := compare_saved(held, tables[table], jumps):
                    changes[family, table] = change
        return IptablesPlan(changes, wanted, forests, node, whole=True, rules=rules)

    def owner(
        self, routings: Iterable[ServiceRouting], node: NodeRouting, line: str
    ) -> ObjectName | None:
        """Find the Service that a line for iptables-restore is there for."""
        word, _, rest = line.partition(" ")
        chain, _, text = rest.partition(" ")
        if word != "-A":
            return None
        for routing in routings:
            for family in self._families:
                part = compile_service(routing, family, self._view(family, node))
                leaves = (*part.served.values(), *part.refused.values())
                if chain in part.nat or chain in part.filter or any(r.text == text for r in leaves):
                    return routing.name
        return None

    def remember(self, plan: IptablesPlan) -> None:
        """Take a plan for what is so now."""
        if plan.node is not None:
            self._node = plan.node
        if plan.whole:
            self._programmed.clear()
        for name, routing in plan.wanted.items():
            if routing is None:
                self._programmed.pop(name, None)
            else:
                self._programmed[name] = routing
        self._forests.update(plan.forests)
        self.rules = plan.rules

    def _held(self, names: Iterable[ObjectName]) -> Iterable[ServiceRouting]:
        return [routing for name in names if (routing := self.routing(name))]

    def _view(self, family: Family, node: NodeRouting) -> View:
        return View(self._options, fixed.pods(family, self._options, node.pod_networks))

    def _tables(
        self, family: Family, view: View, parts: Iterable[Part], frontend_trees: FrontendTrees
    ) -> Tables:
        tables = fixed.chains(family, self._options, view.pods)
        for table, chains in frontend_trees.chains.items():
            tables[table] |= chains
        for part in parts:
            tables[NAT].update(part.nat)
            tables[FILTER].update(part.filter)
        return tables


def desired(
    options: Options, services: Iterable[ServiceRouting], node: NodeRouting, family: Family
) -> Tables:
    """Write all that one family's tables are to hold, the jumps from the kernel's chains too."""
    committed_state = CommittedState(options, (family,))
    plan = committed_state.plan_whole(services, node, {family: {}})
    tables: Tables = {table: {} for table in TABLES}
    for (_, table), change in plan.changes.items():
        tables[table] = dict(change.chains)
        for hook, rule in change.jumps:
            tables[table][hook] = (*tables[table].get(hook, ()), rule)
    return tables
