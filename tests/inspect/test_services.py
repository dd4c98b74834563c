"""Views of Services: the clients of each endpoint, and why others are unused or unmatched."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pyproxy.errors import UsageError
from pyproxy.inspect.services import EndpointView, ServiceView, object_name, services
from pyproxy.model.address import Address, Family, Port, Protocol, backend, parse_address
from pyproxy.model.objects import Endpoint, EndpointSlice, ObjectName, SlicePort
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use
from tests.ui import snapshots

WEB = ObjectName("shop", "web")
HTTP = SlicePort("http", Protocol.TCP, Port(8080))
ADMIN = msgspec.structs.replace(HTTP, name="admin")
LOCAL, REMOTE, UNREADY = (parse_address(f"10.244.{n}.11") for n in (1, 2, 3))
ENDPOINTS = (
    Endpoint(LOCAL, node="node-a"),
    Endpoint(REMOTE, node="node-b"),
    Endpoint(UNREADY, ready=False, serving=False, node="node-a"),
)


def view(
    use: Use,
    cluster: tuple[Address, ...],
    local: tuple[Address, ...],
    other: SlicePort = ADMIN,
) -> ServiceView:
    """Return the view of a Service with one frontend, programmed with these endpoints."""
    slices = (
        EndpointSlice(ObjectName("shop", "web-1"), WEB, Family.IPV4, (HTTP,), ENDPOINTS),
        EndpointSlice(
            ObjectName("shop", "web-2"),
            WEB,
            Family.IPV4,
            (other,),
            ENDPOINTS[:1],
        ),
    )
    routing = PortRouting(
        "http",
        Family.IPV4,
        Protocol.TCP,
        (Frontend(Scope.CLUSTER_IP, parse_address("10.96.0.1"), Port(80), use),),
        tuple(backend(address, Port(8080)) for address in cluster),
        tuple(backend(address, Port(8080)) for address in local),
    )
    snapshot = msgspec.structs.replace(
        snapshots.snapshot(snapshots.service("web")),
        slices={each.name: each for each in slices},
        routings={WEB: ServiceRouting(WEB, (routing,))},
    )
    (found,) = services(snapshot, str(WEB)).services
    return found


@pytest.mark.parametrize(
    ("use", "cluster", "local", "used_by"),
    [
        (Use.CLUSTER, (LOCAL, REMOTE), (), ["all", "all", ""]),
        (Use.LOCAL, (), (LOCAL,), ["all", "", ""]),
        (Use.SPLIT, (LOCAL, REMOTE), (LOCAL,), ["all", "internal", ""]),
        (Use.SPLIT, (REMOTE,), (LOCAL,), ["external", "internal", ""]),
        (Use.REJECT, (), (), ["", "", ""]),
    ],
    ids=lambda value: value.value if isinstance(value, Use) else None,
)
def test_each_endpoint_has_the_clients_that_are_sent_to_it(
    use: Use, cluster: tuple[Address, ...], local: tuple[Address, ...], used_by: list[str]
) -> None:
    (port,) = view(use, cluster, local).ports
    assert [each.used_by for each in port.endpoints] == used_by


def test_an_unused_endpoint_has_a_reason() -> None:
    (port,) = view(Use.LOCAL, (), (LOCAL,)).ports
    assert [bool(each.reason) for each in port.endpoints] == [False, True, True]
    assert port.endpoints[2].reason == "not ready"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "admin"}, "the Service has no port named 'admin'"),
        ({"protocol": Protocol.UDP}, "the Service has no port named 'http' with UDP"),
    ],
)
def test_an_endpoint_of_another_port_is_unmatched(changes: dict[str, Any], reason: str) -> None:
    other = msgspec.structs.replace(HTTP, **changes)
    assert view(Use.CLUSTER, (LOCAL,), (), other).unmatched == (
        EndpointView("10.244.1.11:8080", "node-a", "", "", reason),
    )


def test_a_service_without_routing_is_not_programmed() -> None:
    (found,) = services(snapshots.snapshot(snapshots.service("web"))).services
    assert found.programmed is False
    assert found.ports[0].frontends == ()


def test_a_namespace_selects_its_services() -> None:
    snapshot = snapshots.snapshot(snapshots.service("web"), snapshots.service("api"))
    assert [each.name for each in services(snapshot, namespace="shop").services] == ["api", "web"]
    assert services(snapshot, namespace="other").services == ()


@pytest.mark.parametrize(
    ("text", "name"),
    [("shop/web", WEB), ("web", ObjectName("default", "web"))],
)
def test_a_name_without_namespace_is_in_default(text: str, name: ObjectName) -> None:
    assert object_name(text) == name


@pytest.mark.parametrize("text", ["", "/", "/web", "shop/", "a/b/c"])
def test_any_other_name_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="use NAMESPACE/NAME"):
        object_name(text)
