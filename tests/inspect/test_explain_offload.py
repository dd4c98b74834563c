"""`pyproxy explain` names policy engines whose rules offloaded connections do not meet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from pyproxy.config.settings import FlowOffload, NftablesSettings, Settings
from pyproxy.hostnet.firewall.facts import FirewallFacts
from pyproxy.hostnet.packet import FirstPacket, Origin, PacketPath
from pyproxy.hostnet.path_facts import PathFacts
from pyproxy.hostnet.transforms import TransformFacts
from pyproxy.inspect.explain.path_firewalls import firewalls
from pyproxy.inspect.explain.step import Result, Step
from pyproxy.inspect.service_paths import service_paths
from pyproxy.model.address import Port, Protocol
from pyproxy.model.objects import ServicePort
from tests.agent.live import endpoint_slice, service
from tests.builders import HOST, ip, pod, slice_of, web
from tests.inspect import firewall_rulesets as rulesets
from tests.inspect.facts import agent_facts, facts
from tests.inspect.firewall_rulesets import Ruleset, by_iptables
from tests.inspect.node import NAMESPACE, SITE, InspectedNode, inspected_node

Chain = tuple[str, str]
FORWARD = ("ip filter", "FORWARD")
CALICO = ("ip filter", "cali-FORWARD")


def step(*entered: Chain, base: Chain = FORWARD, offloaded: bool = True, **fields: Any) -> Step:
    """Return the step of a Service whose packets meet these chains."""
    settings = Settings(HOST)
    if offloaded:
        options = NftablesSettings(flow_offload=FlowOffload.SERVICES)
        settings = msgspec.structs.replace(settings, nftables=options)
    agent = agent_facts(web(**fields), [slice_of(pod("a1"))], settings=settings)
    packet = FirstPacket(Protocol.TCP, None, ip("10.244.1.1"), Port(8080))
    found = msgspec.structs.replace(
        service_paths(agent, None), paths=(PacketPath(Origin.POD, packet, packet),)
    )
    part = FirewallFacts(chains=(base,), entered=entered)
    return firewalls(facts(agent, PathFacts(found, firewalls=part, transforms=TransformFacts())))


ENGINES: dict[str, Chain] = {
    "Calico": CALICO,
    "Cilium": ("ip filter", "CILIUM_FORWARD"),
    "kube-router's network policy": ("iptables-legacy filter", "KUBE-ROUTER-FORWARD"),
    "Weave Net's network policy": ("ip filter", "WEAVE-NPC"),
    "Antrea": ("ip filter", "ANTREA-FORWARD"),
    "ufw": ("ip filter", "ufw-before-forward"),
}


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_whose_chain_packets_enter_is_a_note(name: str) -> None:
    table, chain = ENGINES[name]
    found = step(ENGINES[name])
    assert found.result is Result.NOTE
    assert f"pass no rule of {name} (chain {chain} in table {table}): " in found.message
    assert found.message.endswith("--flow-offload=none keeps them off the fast path")


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("Calico", ("inet calico", "filter-FORWARD")),
        ("firewalld", ("inet firewalld", "filter_FORWARD")),
        ("kube-network-policies", ("inet kube-network-policies", "postrouting")),
    ],
)
def test_an_engine_with_a_base_chain_is_a_note(name: str, base: Chain) -> None:
    assert f"pass no rule of {name} " in step(base=base).message


def test_each_engine_is_named_once() -> None:
    found = step(CALICO, ("ip filter", "cali-to-wl-dispatch"), ("ip filter", "ufw-user-forward"))
    told = "\n".join([found.message, *found.details])
    assert told.count("no rule of Calico ") == told.count("no rule of ufw ") == 1
    assert "(chain cali-FORWARD in table ip filter)" in told


@pytest.mark.parametrize("chain", [("ip filter", "DOCKER-USER"), ("ip filter", "KUBE-FIREWALL")])
def test_other_programs_are_none(chain: Chain) -> None:
    assert step(chain).result is Result.OK


@pytest.mark.parametrize(
    "fields",
    [
        {"offloaded": False},
        {"affinity_timeout": 10800},
        {"ports": (ServicePort("", Protocol.SCTP, Port(80)),)},
    ],
    ids=["off", "session affinity", "SCTP"],
)
def test_connections_that_are_never_offloaded_have_no_note(fields: dict[str, Any]) -> None:
    assert step(CALICO, **fields).result is Result.OK


@pytest.fixture(scope="module")
def node() -> Iterator[InspectedNode]:
    with inspected_node("--flow-offload=services") as found:
        found.create(
            service("web", "10.96.0.70"), endpoint_slice("web", ["10.244.1.11", "10.244.2.11"])
        )
        yield found


@pytest.mark.kernel
@pytest.mark.modes("nftables")
@pytest.mark.parametrize(
    "ruleset",
    [
        Ruleset("firewalld", rulesets.FIREWALLD),
        *(
            by_iptables(owner, text, program)
            for program in ("nft", "legacy")
            for owner, text in (("Calico", rulesets.CALICO), ("ufw", rulesets.UFW))
        ),
    ],
    ids=["firewalld", "Calico, nft", "ufw, nft", "Calico, legacy", "ufw, legacy"],
)
def test_an_engine_in_the_kernel_is_named(node: InspectedNode, ruleset: Ruleset) -> None:
    with ruleset.loaded(node.cluster.network.namespace(SITE)):
        result = node.command("explain", f"{NAMESPACE}/web", "-o", "json")
        (found,) = (each for each in result.json["steps"] if each["name"] == "firewalls")
        assert (result.status, found["result"]) == (0, "note"), result.out
        assert f"pass no rule of {ruleset.owner} (chain " in found["message"]
    assert "flow-offload" not in node.command("explain", f"{NAMESPACE}/web").out
