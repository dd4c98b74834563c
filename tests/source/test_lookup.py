"""Lookups of a pod's addresses in the API."""

from __future__ import annotations

from typing import Any

import pytest

from pyproxy.errors import SourceError
from pyproxy.model.objects import ObjectName
from pyproxy.source.connect import connect
from pyproxy.source.lookup import pod_addresses
from tests.source.scripted import Exchange, Server, serving

WEB_1 = ObjectName("shop", "web-1")
PODS = "/api/v1/namespaces/shop/pods"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices"


def pod(**status: Any) -> Any:
    return {"metadata": {"name": "web-1"}, "status": status}


def addresses(server: Server) -> tuple[str, ...]:
    return pod_addresses(connect("", server.url), WEB_1)


@pytest.mark.parametrize(
    ("items", "wanted"),
    [
        ([pod(podIP="10.0.0.1", podIPs=[{"ip": "10.0.0.1"}, {"ip": "fd10::1"}])],
         ("10.0.0.1", "fd10::1")),
        ([pod(podIP="10.0.0.1")], ("10.0.0.1",)),
        ([pod()], ()),
        ([], ()),
    ],
)  # fmt: skip
def test_the_addresses_of_a_pod(items: list[Any], wanted: tuple[str, ...]) -> None:
    with serving(lambda exchange: exchange.respond({"items": items})) as server:
        assert addresses(server) == wanted
    (asked,) = server.seen
    assert (asked.route, asked.query) == (PODS, {"fieldSelector": "metadata.name=web-1"})


def endpoint(address: str, kind: str, name: str) -> Any:
    return {"addresses": [address], "targetRef": {"kind": kind, "name": name}}


def test_pod_addresses_come_from_slices_without_the_right_to_list_pods() -> None:
    slices = [
        {"endpoints": [endpoint("10.0.0.1", "Pod", "web-1"), endpoint("10.0.0.2", "Pod", "web-2")]},
        {"endpoints": [endpoint("10.0.0.3", "Node", "web-1"), {"addresses": ["10.0.0.4"]}]},
        {"endpoints": [endpoint("fd10::1", "Pod", "web-1"), endpoint("10.0.0.1", "Pod", "web-1")]},
        {"endpoints": None},
    ]

    def script(exchange: Exchange) -> None:
        if exchange.route == SLICES:
            exchange.respond({"items": slices})
        else:
            exchange.fail(403, "pods is forbidden")

    with serving(script) as server:
        assert addresses(server) == ("10.0.0.1", "fd10::1")
    assert [each.route for each in server.seen] == [PODS, SLICES]


def test_an_error_of_the_api_server_is_in_the_result() -> None:
    with (
        serving(lambda exchange: exchange.fail(500, "no idea")) as server,
        pytest.raises(SourceError, match="500 no idea"),
    ):
        addresses(server)
