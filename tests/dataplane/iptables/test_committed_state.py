"""Plans from the committed state lead to the chains that a full compilation gives."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given, settings

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.iptables.base_rules import IptablesOptions
from pyproxy.dataplane.iptables.committed_state import CommittedTables, Tables, compile_all
from pyproxy.dataplane.iptables.plan import IptablesPlan
from pyproxy.model.address import Family, parse_network
from pyproxy.policy.routing import ServiceRouting
from pyproxy.xtables.saved import HOOKS
from tests.dataplane.nftables.scenes import Scene, scenes
from tests.dataplane.nftables.test_dataplane import numbered

NODE = NodeRouting((parse_network("10.128.0.0/9"),))
OPTIONS = IptablesOptions()


def commit(tables: Tables, committed: CommittedTables, plan: IptablesPlan) -> None:
    for (_, table), change in plan.changes.items():
        chains = tables.setdefault(table, {})
        chains.update(change.chains)
        for chain in change.deleted:
            del chains[chain]
    committed.remember_plan(plan)


def start(routings: Iterable[ServiceRouting], node: NodeRouting) -> tuple[Tables, CommittedTables]:
    tables: Tables = {}
    committed = CommittedTables(OPTIONS, (Family.IPV4,))
    commit(tables, committed, committed.plan_full(routings, node, {Family.IPV4: {}}))
    return tables, committed


def expected(routings: Iterable[ServiceRouting], node: NodeRouting) -> Tables:
    tables = compile_all(OPTIONS, routings, node, Family.IPV4)
    return {
        table: {chain: rules for chain, rules in chains.items() if chain not in HOOKS}
        for table, chains in tables.items()
    }


@settings(max_examples=50, deadline=None)
@given(scenes(), scenes())
def test_a_partial_plan_leads_to_the_fully_compiled_state_and_back(
    before: Scene, after: Scene
) -> None:
    old, new = before.undivided(), after.undivided()
    tables, committed = start(old.values(), NODE)
    node = NodeRouting(after.node.pod_networks, after.node_port_addresses)
    plan = committed.plan({name: new.get(name) for name in old.keys() | new.keys()}, node)
    undone = committed.undo(plan)
    commit(tables, committed, plan)
    assert tables == expected(new.values(), node)
    assert committed.rules == {
        (Family.IPV4, table): sum(map(len, chains.values())) for table, chains in tables.items()
    }
    for (_, table), change in undone.changes.items():
        tables[table].update(change.chains)
        for chain in change.deleted:
            del tables[table][chain]
    assert tables == expected(old.values(), NODE)


def test_the_owner_of_a_rejected_line_is_found() -> None:
    routings = [numbered(each) for each in range(3)]
    tables, committed = start(routings, NODE)
    service = next(chain for chain in tables["nat"] if chain.startswith("KUBE-SVC-"))
    line = f"-A {service} -j DROP"
    ((owner, named),) = committed.find_owners(routings, NODE, [line]).items()
    assert owner in {each.name for each in routings}
    assert named == line
    assert not committed.find_owners(routings, NODE, ["-A KUBE-SERVICES -j DROP", "COMMIT"])
    leaves = [
        f"-A KUBE-SERVICES {rule.text}"
        for chain, rules in tables["nat"].items()
        for rule in rules
        if chain.startswith(("KUBE-IP-", "KUBE-SERVICES")) and "--comment" in rule.text
    ]
    (leaf,) = (each for each in leaves if service in each)
    assert committed.find_owners(routings, NODE, [leaf]) == {owner: leaf}
    found = committed.find_owners(routings, NODE, leaves)
    assert found.keys() == {each.name for each in routings}
