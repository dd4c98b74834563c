"""`explain` where the API server does not respond, or refuses a part of the query."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pyproxy.inspect.agent_facts import AgentFacts
from pyproxy.inspect.explain import Explanation, Result, Step, explain
from pyproxy.inspect.facts import Facts, KernelFacts
from pyproxy.inspect.queries import FACTS, LOOKUP, FactsArgs, LookupArgs
from pyproxy.model.objects import ObjectName
from pyproxy.source.api_objects import ServiceLookup
from pyproxy.source.connect import connect
from pyproxy.source.lookup import look_up
from tests.agent.live import endpoint_slice, service
from tests.inspect.node import InspectedNode
from tests.source.scripted import Exchange, serving

pytestmark = pytest.mark.kernel

TARGET = "shop/web"
NAME = ObjectName("shop", "web")
CLOSED_PORT = "http://127.0.0.1:1"
FIX = "restore the connection from this node to the API server; the steps below may be out of date"
WEB: dict[str, Any] = {
    "metadata": {"name": "web"},
    "spec": {"clusterIP": "10.96.0.50", "selector": {"app": "web"}},
}


@pytest.fixture
def agent_facts(node: InspectedNode) -> AgentFacts:
    node.create(service("web", "10.96.0.50"), endpoint_slice("web", ["10.244.1.11"]))
    return node.client.query(FACTS, FactsArgs(TARGET))


def explained(agent_facts: AgentFacts, lookup: ServiceLookup) -> Explanation:
    kernel = KernelFacts(not_read="not queried", flows_not_read="not queried")
    return explain(TARGET, Facts(agent_facts, lookup, kernel))


def step(found: Explanation, name: str) -> Step:
    (only,) = (each for each in found.steps if each.name == name)
    return only


def test_an_unreachable_api_server_fails_the_first_step_only(
    agent_facts: AgentFacts,
) -> None:
    found = explained(agent_facts, look_up(connect("", CLOSED_PORT), NAME))
    found_step = step(found, "agent")
    assert (found_step.result, found_step.fix) == (Result.FAILED, FIX)
    assert found_step.message.startswith(f"cannot reach the API server: {CLOSED_PORT}: ")
    assert found_step.message.endswith("; this node serves the last known state")
    assert step(found, "selector").message == "API not queried: unreachable"
    assert step(found, "policy").result is Result.OK
    assert (found.ok, found.verdict) == (False, found_step.message)


def test_an_api_server_that_sends_nothing_fails_the_first_step(agent_facts: AgentFacts) -> None:
    stale = msgspec.structs.replace(agent_facts, api_age=301.5)
    found_step = step(explained(stale, ServiceLookup()), "agent")
    assert (found_step.result, found_step.fix) == (Result.FAILED, FIX)
    assert found_step.message == (
        "a watch has received nothing for 302 s; this node serves the last known state"
    )
    quiet = msgspec.structs.replace(agent_facts, api_age=60.0)
    assert step(explained(quiet, ServiceLookup()), "agent").result is Result.OK


def test_without_permission_to_list_pods_the_selector_step_is_skipped(
    agent_facts: AgentFacts,
) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.route.endswith("/pods"):
            exchange.fail(403, "pods is forbidden")
        else:
            exchange.respond({"items": [WEB]})

    with serving(script) as server:
        found = explained(agent_facts, look_up(connect("", server.url), NAME))
    found_step = step(found, "selector")
    assert (found_step.result, found_step.message) == (
        Result.SKIPPED,
        "app=web; pods not queried: no permission",
    )
    assert found.ok


def test_without_permission_to_list_services_the_selector_step_is_skipped(
    agent_facts: AgentFacts,
) -> None:
    with serving(lambda exchange: exchange.fail(403, "services is forbidden")) as server:
        found = explained(agent_facts, look_up(connect("", server.url), NAME))
    found_step = step(found, "selector")
    assert (found_step.result, found_step.message) == (
        Result.SKIPPED,
        "API not queried: no permission",
    )
    assert found.ok


def test_the_agent_queries_the_api_server_for_its_clients(
    node: InspectedNode, agent_facts: AgentFacts
) -> None:
    assert agent_facts.service is not None
    found = node.client.query(LOOKUP, LookupArgs(TARGET))
    assert found.service is not None
    assert (found.service.metadata.name, found.api_error) == ("web", "")
    assert node.client.query(LOOKUP, LookupArgs("shop/none")) == ServiceLookup()
