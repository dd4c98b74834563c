"""The rows that node ports take and that a change writes, on a node of many addresses."""

from __future__ import annotations

import pytest

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.iptables.base_rules import NAT, TABLES, IptablesOptions
from pyproxy.dataplane.iptables.committed_state import CommittedTables
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables.compile import add_service, compile_all
from pyproxy.model.address import Address, Backend, Family, Port, Protocol, parse_address
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use
from pyproxy.xtables.saved import EMPTY

ADDRESSES, SERVICES = 200, 300
CHAINS, RULES = 4, 14
"""Chains on the path to an address, and their rules, at most."""


def routing(number: int, use: Use = Use.CLUSTER) -> ServiceRouting:
    backends = (Backend(bytes((10, 244, number >> 8, number & 255)) + b"\x1f\x90"),)
    cluster_ip = parse_address(f"10.96.{number >> 8}.{number & 255}")
    frontends = (
        Frontend(Scope.CLUSTER_IP, cluster_ip, Port(80), use),
        Frontend(Scope.NODE_PORT, Address(b""), Port(30_000 + number), use),
    )
    served = backends if use is Use.CLUSTER else ()
    port = PortRouting("http", Family.IPV4, Protocol.TCP, frontends, served, ())
    return ServiceRouting(ObjectName("shop", f"s{number}"), (port,))


def node(addresses: int) -> NodeRouting:
    found = (parse_address(f"172.31.{number >> 8}.{number & 255}") for number in range(addresses))
    return NodeRouting((), tuple(found))


def elements(services: int, addresses: int) -> int:
    routings = [routing(number) for number in range(services)]
    table = compile_all(routings, node(addresses), 1 << 30).table
    return sum(map(len, table.values()))


def test_an_address_more_is_one_element() -> None:
    assert elements(SERVICES, ADDRESSES + 1) == elements(SERVICES, ADDRESSES) + 1


def test_a_node_port_more_has_the_elements_of_one_frontend() -> None:

    table: Table = {}
    add_service(routing(SERVICES), table)
    found = {name: len(rows) for name, rows in table.items()}
    assert found == {"services4": 1, "endpoints4": 1, "node-ports4": 1, "node-port-endpoints4": 1}


@pytest.mark.parametrize("use", [Use.CLUSTER, Use.REJECT])
def test_an_address_more_changes_the_chains_on_its_path(use: Use) -> None:
    routings = [routing(number, use) for number in range(SERVICES)]
    state = CommittedTables(IptablesOptions(), (Family.IPV4,))
    before = node(ADDRESSES)
    state.remember_plan(
        state.plan_full(routings, before, {Family.IPV4: dict.fromkeys(TABLES, EMPTY)})
    )
    plan = state.plan({}, node(ADDRESSES + 1))
    written = [rules for change in plan.changes.values() for rules in change.chains.values()]
    assert 0 < len(written) <= CHAINS
    assert sum(map(len, written)) <= RULES
    assert not any(change.deleted for change in plan.changes.values())


def test_node_ports_have_rules_by_their_number_alone() -> None:
    def rules(addresses: int) -> int:
        routings = [routing(number) for number in range(SERVICES)]
        state = CommittedTables(IptablesOptions(), (Family.IPV4,))
        saved = {Family.IPV4: dict.fromkeys(TABLES, EMPTY)}
        plan = state.plan_full(routings, node(addresses), saved)
        return plan.rules[Family.IPV4, NAT]

    # An address has a rule of its own, and at most as many lead to it.
    assert rules(ADDRESSES) - rules(1) <= 2 * ADDRESSES
