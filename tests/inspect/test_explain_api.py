"""What `explain` says where the API server does not answer, or not everything that is asked."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pyproxy.inspect.evidence import EVIDENCE, Evidence, Target
from pyproxy.inspect.explain import Case, Explanation, KernelFacts, Mark, Step, explain
from pyproxy.inspect.lookup import LOOKUP, Named
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
NOBODY = "http://127.0.0.1:1"
FIX = "restore the way from this node to the API server; what follows may be out of date"
WEB: dict[str, Any] = {
    "metadata": {"name": "web"},
    "spec": {"clusterIP": "10.96.0.50", "selector": {"app": "web"}},
}


@pytest.fixture
def evidence(node: InspectedNode) -> Evidence:
    node.create(service("web", "10.96.0.50"), endpoint_slice("web", ["10.244.1.11"]))
    return node.client.ask(EVIDENCE, Target(TARGET))


def explained(evidence: Evidence, lookup: ServiceLookup) -> Explanation:
    facts = KernelFacts(not_read="not asked", flows_not_read="not asked")
    return explain(TARGET, Case(evidence, lookup, facts))


def step(found: Explanation, name: str) -> Step:
    (only,) = (each for each in found.steps if each.name == name)
    return only


def test_an_api_server_that_nobody_reaches_is_told_and_the_rest_is_explained(
    evidence: Evidence,
) -> None:
    found = explained(evidence, look_up(connect("", NOBODY), NAME))
    told = step(found, "agent")
    assert (told.mark, told.fix) == (Mark.CROSS, FIX)
    assert told.says.startswith(f"the API server cannot be reached: {NOBODY}: ")
    assert told.says.endswith("; this node serves what it knew before")
    assert step(found, "selector").says == "not asked: the API was not reached"
    assert step(found, "policy").mark is Mark.TICK
    assert (found.well, found.verdict) == (False, told.says)


def test_an_api_server_that_has_been_silent_for_long_is_told(evidence: Evidence) -> None:
    silent = msgspec.structs.replace(evidence, api_age=301.5)
    told = step(explained(silent, ServiceLookup()), "agent")
    assert (told.mark, told.fix) == (Mark.CROSS, FIX)
    assert told.says == (
        "the API server was last heard of 302 s ago; this node serves what it knew then"
    )
    quiet = msgspec.structs.replace(evidence, api_age=60.0)
    assert step(explained(quiet, ServiceLookup()), "agent").mark is Mark.TICK


def test_who_may_not_list_pods_sees_a_dash(evidence: Evidence) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.route.endswith("/pods"):
            exchange.fail(403, "pods is forbidden")
        else:
            exchange.answer({"items": [WEB]})

    with serving(script) as server:
        found = explained(evidence, look_up(connect("", server.url), NAME))
    told = step(found, "selector")
    assert (told.mark, told.says) == (
        Mark.SKIPPED,
        "app=web; its pods were not asked for: no permission",
    )
    assert found.well


def test_who_may_not_list_services_sees_a_dash(evidence: Evidence) -> None:
    with serving(lambda exchange: exchange.fail(403, "services is forbidden")) as server:
        found = explained(evidence, look_up(connect("", server.url), NAME))
    told = step(found, "selector")
    assert (told.mark, told.says) == (Mark.SKIPPED, "not asked: no permission")
    assert found.well


def test_the_agent_asks_the_api_for_whoever_asks_it(
    node: InspectedNode, evidence: Evidence
) -> None:
    assert evidence.service is not None
    found = node.client.ask(LOOKUP, Named(TARGET))
    assert found.service is not None
    assert (found.service.metadata.name, found.api_error) == ("web", "")
    assert node.client.ask(LOOKUP, Named("shop/none")) == ServiceLookup()
