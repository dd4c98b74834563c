"""The endpoints that a Service port uses."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pyproxy.model.objects import Endpoint, EndpointSlice, Node, Service
from pyproxy.policy.endpoints import route_service
from pyproxy.policy.routing import PortRouting, Scope, Use
from tests.builders import (
    EXTERNAL,
    HOST,
    LOCAL,
    NODE,
    backends,
    draining,
    pod,
    slice_of,
    terminated,
    unready,
    web,
)


class Expected(msgspec.Struct):
    """The routing of a Service with one port; `external` is the use of its external frontends."""

    internal: Use
    cluster: str = ""
    local: str = ""
    hairpin: str = ""
    external: Use | None = None


EXTERNAL_LOCAL = EXTERNAL | {"external_policy": LOCAL}
INTERNAL_LOCAL: dict[str, Any] = {"internal_policy": LOCAL}

CASES: dict[str, tuple[dict[str, Any], list[Endpoint], Expected]] = {
    "ready endpoints share": (
        {},
        [pod("b1"), pod("b2")],
        Expected(Use.CLUSTER, "b1 b2"),
    ),
    "endpoints on this node may call themselves": (
        {},
        [pod("a1"), pod("b1")],
        Expected(Use.CLUSTER, "a1 b1", hairpin="a1"),
    ),
    "without endpoints connections are rejected": ({}, [], Expected(Use.REJECT)),
    "without endpoints connections are rejected on every kind of address": (
        EXTERNAL,
        [],
        Expected(Use.REJECT, external=Use.REJECT),
    ),
    "unready endpoints are no endpoints": (
        EXTERNAL,
        [unready("a1"), unready("b1")],
        Expected(Use.REJECT, external=Use.REJECT),
    ),
    "an unready endpoint gets nothing": (
        {},
        [unready("a1"), pod("b1")],
        Expected(Use.CLUSTER, "b1"),
    ),
    "an unready endpoint that serves but does not terminate gets nothing": (
        {},
        [pod("a1", ready=False)],
        Expected(Use.REJECT),
    ),
    "ready counts whatever the other conditions say, as with publishNotReadyAddresses": (
        {},
        [pod("b1", serving=False, terminating=True)],
        Expected(Use.CLUSTER, "b1"),
    ),
    "a terminating endpoint waits behind a ready one": (
        {},
        [draining("a1"), pod("b1")],
        Expected(Use.CLUSTER, "b1"),
    ),
    "serving terminating endpoints stand in where nothing is ready": (
        {},
        [draining("a1"), terminated("b1"), unready("b2")],
        Expected(Use.CLUSTER, "a1", hairpin="a1"),
    ),
    "internal Local: this node's endpoints alone": (
        INTERNAL_LOCAL,
        [pod("a1"), pod("b1")],
        Expected(Use.LOCAL, local="a1", hairpin="a1"),
    ),
    "internal Local: only others have endpoints": (
        INTERNAL_LOCAL,
        [pod("b1")],
        Expected(Use.DROP),
    ),
    "internal Local: only others have endpoints, and those are terminating": (
        INTERNAL_LOCAL,
        [draining("b1")],
        Expected(Use.DROP),
    ),
    "internal Local: no usable endpoint": (INTERNAL_LOCAL, [unready("a1")], Expected(Use.REJECT)),
    "internal Local: a local terminating endpoint before a remote ready one": (
        INTERNAL_LOCAL,
        [draining("a1"), pod("b1")],
        Expected(Use.LOCAL, local="a1", hairpin="a1"),
    ),
    "internal Local: a local ready endpoint before a local terminating one": (
        INTERNAL_LOCAL,
        [draining("a1"), pod("a2")],
        Expected(Use.LOCAL, local="a2", hairpin="a2"),
    ),
    "internal Local says nothing of external addresses": (
        INTERNAL_LOCAL | EXTERNAL,
        [pod("a1"), pod("b1")],
        Expected(Use.LOCAL, "a1 b1", "a1", "a1", external=Use.CLUSTER),
    ),
    "internal Local without a local endpoint leaves external addresses alone": (
        INTERNAL_LOCAL | EXTERNAL,
        [pod("b1")],
        Expected(Use.DROP, "b1", external=Use.CLUSTER),
    ),
    "external Cluster": (
        EXTERNAL,
        [pod("a1"), pod("b1")],
        Expected(Use.CLUSTER, "a1 b1", hairpin="a1", external=Use.CLUSTER),
    ),
    "external Local: external clients get this node's, internal ones all": (
        EXTERNAL_LOCAL,
        [pod("a1"), pod("a2"), pod("b1")],
        Expected(Use.CLUSTER, "a1 a2 b1", "a1 a2", "a1 a2 b1", external=Use.SPLIT),
    ),
    "external Local without a local endpoint still serves internal clients": (
        EXTERNAL_LOCAL,
        [pod("b1"), pod("b2")],
        Expected(Use.CLUSTER, "b1 b2", hairpin="b1 b2", external=Use.SPLIT),
    ),
    "external Local: terminating endpoints stand in on this node alone": (
        EXTERNAL_LOCAL,
        [draining("a1"), pod("b1")],
        Expected(Use.CLUSTER, "b1", "a1", "a1 b1", external=Use.SPLIT),
    ),
    "external Local: terminating endpoints stand in for both, separately": (
        EXTERNAL_LOCAL,
        [draining("a1"), draining("b1"), terminated("a2")],
        Expected(Use.CLUSTER, "a1 b1", "a1", "a1 b1", external=Use.SPLIT),
    ),
    "external Local on a Service with nothing external": (
        {"external_policy": LOCAL},
        [pod("a1"), pod("b1")],
        Expected(Use.CLUSTER, "a1 b1", hairpin="a1"),
    ),
    "both Local": (
        INTERNAL_LOCAL | EXTERNAL_LOCAL,
        [pod("a1"), pod("b1")],
        Expected(Use.LOCAL, "a1 b1", "a1", "a1 b1", external=Use.SPLIT),
    ),
    "both Local without a local endpoint": (
        INTERNAL_LOCAL | EXTERNAL_LOCAL,
        [pod("b1")],
        Expected(Use.DROP, "b1", hairpin="b1", external=Use.SPLIT),
    ),
    "zone hints": (
        {},
        [pod("a1", zones=["zone-1"]), pod("b1", zones=["zone-2"]), pod("b2", zones=["zone-1"])],
        Expected(Use.CLUSTER, "a1 b2", hairpin="a1"),
    ),
    "node hints before zone hints": (
        {},
        [
            pod("a1", zones=["zone-1"], nodes=["node-a"]),
            pod("b1", zones=["zone-1"], nodes=["node-b"]),
        ],
        Expected(Use.CLUSTER, "a1", hairpin="a1"),
    ),
    "hints are ignored where a ready endpoint has none": (
        {},
        [pod("a1", zones=["zone-1"]), pod("b1")],
        Expected(Use.CLUSTER, "a1 b1", hairpin="a1"),
    ),
    "an unready endpoint without hints does not matter": (
        {},
        [pod("b2", zones=["zone-1"]), unready("a1"), pod("b1", zones=["zone-2"])],
        Expected(Use.CLUSTER, "b2"),
    ),
    "hints for other zones alone are ignored": (
        {},
        [pod("a1", zones=["zone-3"]), pod("b1", zones=["zone-2"])],
        Expected(Use.CLUSTER, "a1 b1", hairpin="a1"),
    ),
    "hints of terminating endpoints are ignored": (
        {},
        [draining("a1", zones=["zone-2"]), draining("b1", zones=["zone-1"])],
        Expected(Use.CLUSTER, "a1 b1", hairpin="a1"),
    ),
    "hints do not narrow the policy Local": (
        EXTERNAL_LOCAL,
        [pod("a1", zones=["zone-2"]), pod("b1", zones=["zone-1"])],
        Expected(Use.CLUSTER, "b1", "a1", "a1 b1", external=Use.SPLIT),
    ),
    "an endpoint without a node is local to no node": (
        INTERNAL_LOCAL,
        [pod("a1", node="")],
        Expected(Use.DROP),
    ),
    "an endpoint that says no node may be here, and call itself": (
        {},
        [pod("a1", node=""), pod("b1")],
        Expected(Use.CLUSTER, "a1 b1", hairpin="a1"),
    ),
}


@pytest.mark.parametrize(("fields", "endpoints", "expected"), CASES.values(), ids=CASES)
def test_one_port(fields: dict[str, Any], endpoints: list[Endpoint], expected: Expected) -> None:
    (port,) = route_service(web(**fields), [slice_of(*endpoints)], NODE, HOST).ports
    found = {frontend.scope: frontend.use for frontend in port.frontends}
    assert found.pop(Scope.CLUSTER_IP) is expected.internal
    assert set(found.values()) == ({expected.external} if expected.external else set())
    assert port.cluster == backends(*expected.cluster.split())
    assert port.local == backends(*expected.local.split())
    assert port.hairpin == backends(*expected.hairpin.split())


def only(service: Service, *parts: EndpointSlice, node: Node | None = NODE) -> PortRouting:
    (port,) = route_service(service, parts, node, HOST).ports
    return port


def test_terminating_endpoints_drain_beside_ready_ones() -> None:
    port = only(web(), slice_of(draining("a1"), draining("b1"), terminated("b2"), pod("a2")))
    assert (port.cluster, port.draining) == (backends("a2"), backends("a1", "b1"))
    alone = only(web(), slice_of(draining("a1"), unready("a2")))
    assert (alone.cluster, alone.draining) == (backends("a1"), ())


def test_zone_hints_need_the_node_object() -> None:
    part = slice_of(pod("a1", zones=["zone-1"]), pod("b1", zones=["zone-2"]))
    assert only(web(), part, node=None).cluster == backends("a1", "b1")
