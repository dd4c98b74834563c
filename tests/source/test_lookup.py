"""What is looked up in the API for a person: a pod's addresses."""

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
def test_a_pod_says_what_addresses_it_has(items: list[Any], wanted: tuple[str, ...]) -> None:
    with serving(lambda exchange: exchange.answer({"items": items})) as server:
        assert addresses(server) == wanted
    (asked,) = server.seen
    assert (asked.route, asked.query) == (PODS, {"fieldSelector": "metadata.name=web-1"})


def endpoint(address: str, kind: str, name: str) -> Any:
    return {"addresses": [address], "targetRef": {"kind": kind, "name": name}}


def test_who_may_not_list_pods_finds_their_addresses_in_the_slices() -> None:
    slices = [
        {"endpoints": [endpoint("10.0.0.1", "Pod", "web-1"), endpoint("10.0.0.2", "Pod", "web-2")]},
        {"endpoints": [endpoint("10.0.0.3", "Node", "web-1"), {"addresses": ["10.0.0.4"]}]},
        {"endpoints": [endpoint("fd10::1", "Pod", "web-1"), endpoint("10.0.0.1", "Pod", "web-1")]},
        {"endpoints": None},
    ]

    def script(exchange: Exchange) -> None:
        if exchange.route == SLICES:
            exchange.answer({"items": slices})
        else:
            exchange.fail(403, "pods is forbidden")

    with serving(script) as server:
        assert addresses(server) == ("10.0.0.1", "fd10::1")
    assert [each.route for each in server.seen] == [PODS, SLICES]


def test_an_api_server_that_fails_is_said_to() -> None:
    with (
        serving(lambda exchange: exchange.fail(500, "no idea")) as server,
        pytest.raises(SourceError, match="500 no idea"),
    ):
        addresses(server)
