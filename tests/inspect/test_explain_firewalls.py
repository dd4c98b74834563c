"""`pyproxy explain` finds rules of other programs that stop a Service's packets.

Each planted rule breaks real connections, and crosses the step `firewalls` with its place.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.namespace import LabError
from pyproxy_lab.probe import Outcome, probe

from pyproxy.model.destination import parse_destination
from tests.agent.live import endpoint_slice, service
from tests.inspect import firewall_rulesets as rulesets
from tests.inspect.firewall_faults import (
    A1,
    A2,
    ADDRESS,
    ADDRESS6,
    B1,
    B1_6,
    B2,
    FAULTS,
    HOST_ADDRESS,
    NODE_PORT,
    OF_NODE,
    TARGET,
    Fault,
)
from tests.inspect.firewall_passing import PASSING, UNDECIDED
from tests.inspect.firewall_rulesets import HARMLESS, by_iptables
from tests.inspect.node import ENOUGH, NAMESPACE, SITE, CommandResult, InspectedNode, inspected_node

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.modes("nftables", "iptables-nft", "iptables-legacy"),
]


@pytest.fixture(scope="module")
def web(mode: LabMode) -> Iterator[InspectedNode]:
    """A node with a Service that has two endpoints here and two on another node."""
    with inspected_node(*mode.flags) as made:
        made.create(service("web", ADDRESS, 30070), endpoint_slice("web", [A1, A2, B1, B2]))
        made.create(service("host", HOST_ADDRESS), _of_the_node())
        made.create(
            service("six", ADDRESS6, ipFamilies=["IPv6"]),
            endpoint_slice("six", ["fd10:1::11", B1_6]) | {"addressType": "IPv6"},
        )
        yield made


def _of_the_node() -> dict[str, Any]:
    made = endpoint_slice("host", ["172.30.0.11"])
    made["ports"][0]["port"] = 9090
    return made


def run(node: InspectedNode, command: str, text: str = "") -> None:
    node.cluster.network.namespace(SITE).run(shlex.split(command), text=text)


@contextlib.contextmanager
def planted(node: InspectedNode, fault: Fault) -> Iterator[None]:
    with contextlib.ExitStack() as loaded:
        if fault.ruleset:
            loaded.enter_context(fault.ruleset.loaded(node.cluster.network.namespace(SITE)))
        yield from _planted(node, fault)


def _planted(node: InspectedNode, fault: Fault) -> Iterator[None]:
    try:
        if fault.nft:
            run(node, "nft -f -", fault.nft)
        for command in fault.iptables:
            run(node, command)
        yield
    finally:
        if fault.nft:
            family, name = fault.nft.split()[1:3]
            run(node, f"nft delete table {family} {name}")
        for command in fault.undo:
            with contextlib.suppress(LabError):
                run(node, command)


def explained(node: InspectedNode, target: str, source: str = "") -> CommandResult:
    return node.command("explain", target, "-o", "json", *(["--from", source] if source else []))


def firewalls(result: CommandResult) -> tuple[str, str]:
    """Return the result of the step, and all that it says."""
    (found,) = (each for each in result.json["steps"] if each["name"] == "firewalls")
    return found["result"], "\n".join([found["message"], *found["details"]])


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_rule_that_stops_packets_is_found(web: InspectedNode, fault: Fault) -> None:
    with planted(web, fault):
        result = explained(web, fault.target, fault.source)
        found, said = firewalls(result)
        assert fault.words in said
        if fault.result:
            assert found == fault.result, result.out
            assert result.json["fix"]
    assert firewalls(explained(web, fault.target))[0] == "ok"


@pytest.mark.parametrize("fault", UNDECIDED.values(), ids=UNDECIDED)
def test_what_cannot_be_decided_is_no_fault(web: InspectedNode, fault: Fault) -> None:
    with planted(web, fault):
        result = explained(web, fault.target, fault.source)
        found, said = firewalls(result)
        assert (found, result.status) == (fault.result, 0), said
        assert fault.words in said


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_rule_that_stops_no_packet_passes(web: InspectedNode, fault: Fault) -> None:
    with planted(web, fault):
        result = explained(web, fault.target, fault.source)
        found, said = firewalls(result)
        assert found == "ok", said
        # Marks that rules set change routes.
        assert [each["name"] for each in result.json["steps"] if each["result"] == "failed"] == []


@pytest.mark.packets
@pytest.mark.modes("nftables")
@pytest.mark.parametrize("name", PASSING)
def test_such_a_rule_breaks_no_connection(web: InspectedNode, name: str) -> None:
    outcome = connected(web, PASSING[name])
    assert not outcome.dropped, outcome
    assert not outcome.refused, outcome


@pytest.mark.packets
@pytest.mark.modes("nftables")
@pytest.mark.parametrize("name", [name for name, each in FAULTS.items() if each.client])
def test_such_a_rule_breaks_connections(web: InspectedNode, name: str) -> None:
    outcome = connected(web, FAULTS[name])
    assert outcome.dropped or outcome.refused


def connected(web: InspectedNode, fault: Fault) -> Outcome:
    """Connect from the client of a fault while it is planted."""
    addresses = {TARGET: ADDRESS, OF_NODE: HOST_ADDRESS, f"{NAMESPACE}/six": f"[{ADDRESS6}]"}
    address = addresses.get(fault.target)
    target = parse_destination(f"{address}:80" if address else fault.target)
    client = web.cluster.network.namespace(fault.client)
    with planted(web, fault):
        return client.call(partial(probe, target, tries=ENOUGH, timeout=0.1, at_once=ENOUGH))


def test_a_network_policy_that_accepts_pods_passes(web: InspectedNode) -> None:
    for program in ("nft", "legacy"):
        ruleset = by_iptables("", rulesets.KUBE_ROUTER, program, rulesets.KUBE_ROUTER_SETS)
        with ruleset.loaded(web.cluster.network.namespace(SITE)):
            found, said = firewalls(explained(web, f"{ADDRESS}:80", A2))
            assert found == "ok", said


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_rules_of_other_programs_pass(
    web: InspectedNode, mode: LabMode, name: str
) -> None:
    ruleset = HARMLESS[name]
    with ruleset.loaded(web.cluster.network.namespace(SITE)):
        for target in (TARGET, NODE_PORT):
            found, said = firewalls(explained(web, target))
            assert found == "ok", said
        # In the shared tables pyproxy's own rules come first, and accept.
        assert ruleset.owner in said or mode.name != "nftables"
