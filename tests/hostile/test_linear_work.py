"""The work for one object is linear in each field that a tenant may write, in every part."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from pyproxy.dataplane.conntrack.frontends import Frontends
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.iptables.base_rules import IptablesOptions
from pyproxy.dataplane.iptables.committed_state import compile_all
from pyproxy.dataplane.ipvs.marks import Marks, assign_marks
from pyproxy.dataplane.ipvs.rows import add_service, shared_rows
from pyproxy.dataplane.nftables.affinity import expectations
from pyproxy.inspect.services import services
from pyproxy.model.address import Family
from pyproxy.model.events import Upsert
from pyproxy.model.objects import EndpointSlice, Kind, Service
from pyproxy.model.service_bounds import DEFAULT_BOUNDS
from pyproxy.policy.endpoints import route_service
from pyproxy.policy.routing import ServiceRouting
from pyproxy.policy.service_bounds import within_bounds
from pyproxy.source import fields, slices
from pyproxy.source import services as source_services
from pyproxy.source.decode import decode_object
from tests.agent.objects import HOSTNAME, NODE, Stage
from tests.builders import WEB, service
from tests.hostile.counting import instructions
from tests.ui.snapshots import snapshot

FEW, MANY = 100, 400
TWICE_TWICE = 4.5
"""More than MANY / FEW, and much less than its square."""


Object = dict[str, Any]


def decoded(obj: Object) -> Service | EndpointSlice:
    value = decode_object(Kind(obj["kind"]), json.dumps(obj).encode()).value
    assert isinstance(value, Service | EndpointSlice)
    return value


def api_service(**spec: Any) -> Object:
    ingress = spec.pop("ingress", [])
    annotations = spec.pop("annotations", {})
    return {
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop", "annotations": annotations},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.1",
            "ports": [{"name": "p0", "port": 80}],
            "externalTrafficPolicy": "Cluster",
            **spec,
        },
        "status": {"loadBalancer": {"ingress": ingress}},
    }


def api_slice(count: int, ports: int = 1, **endpoint: Any) -> Object:
    return {
        "kind": "EndpointSlice",
        "metadata": {
            "name": "web-1",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "ports": [{"name": f"p{n}", "port": 8080} for n in range(ports)],
        "endpoints": [
            {"addresses": [f"10.9.{n // 250}.{n % 250}"], "nodeName": f"n{n}", **endpoint}
            for n in range(count)
        ],
    }


def listed(text: str, count: int) -> list[str]:
    return [text.format(n // 250, n % 250) for n in range(count)]


FIELDS: dict[str, Callable[[int], tuple[Object, ...]]] = {
    "externalIPs": lambda n: (api_service(externalIPs=listed("192.0.{}.{}", n)),),
    "invalid externalIPs": lambda n: (api_service(externalIPs=listed("x.{}.{}", n)),),
    "one externalIP": lambda n: (api_service(externalIPs=["192.0.2.1"] * n),),
    "clusterIPs": lambda n: (api_service(clusterIPs=listed("10.96.{}.{}", n)),),
    "ingress": lambda n: (
        api_service(ingress=[{"ip": each} for each in listed("198.18.{}.{}", n)]),
    ),
    "source ranges": lambda n: (
        api_service(
            loadBalancerSourceRanges=listed("20.{}.{}.0/23", n), ingress=[{"ip": "198.18.0.1"}]
        ),
    ),
    "ports": lambda n: (
        api_service(ports=[{"name": f"p{i}", "port": i + 1} for i in range(n)]),
        api_slice(3, ports=n),
    ),
    "duplicate ports": lambda n: (api_service(ports=[{"name": "p0", "port": 80}] * n),),
    "ports of one name": lambda n: (
        api_service(ports=[{"name": "p0", "port": i + 1} for i in range(n)]),
        api_slice(3),
    ),
    "annotations": lambda n: (api_service(annotations={f"{i}": "x" * 100 for i in range(n)}),),
    "ipFamilies": lambda n: (api_service(ipFamilies=["IPv4", "IPv6"] * n),),
    "endpoints": lambda n: (api_service(), api_slice(n)),
    "local endpoints": lambda n: (api_service(), api_slice(n, nodeName=HOSTNAME)),
    "terminating endpoints": lambda n: (
        api_service(),
        api_slice(n, conditions={"ready": False, "serving": True, "terminating": True}),
    ),
    "slice ports": lambda n: (api_service(), api_slice(3, ports=n)),
    "hints": lambda n: (
        api_service(),
        api_slice(3, hints={"forZones": [{"name": f"z{i}"} for i in range(n)]}),
    ),
    "affinity": lambda n: (api_service(sessionAffinity="ClientIP"), api_slice(n)),
}


def decoded_all(field: str, count: int) -> tuple[Service, list[EndpointSlice]]:
    values = [decoded(obj) for obj in FIELDS[field](count)]
    (found,) = (each for each in values if isinstance(each, Service))
    return found, [each for each in values if isinstance(each, EndpointSlice)]


def routed(field: str, count: int) -> ServiceRouting:
    found, slices = decoded_all(field, count)
    return route_service(found, slices, NODE, HOSTNAME)


@pytest.mark.parametrize("field", FIELDS)
def test_the_agents_work_is_linear(field: str) -> None:
    def work(count: int) -> int:
        stage = Stage()
        stage.begin(service("other", 9))
        objects = FIELDS[field](count)

        def run() -> None:
            for obj in objects:
                stage.agent.handle_event(Upsert(decoded(obj), 0.0))
            stage.settle()

        return instructions(run)

    assert work(MANY) < TWICE_TWICE * work(FEW)


def compiled_iptables(routing: ServiceRouting) -> None:
    options = IptablesOptions()
    for family in Family:
        compile_all(options, [routing], NodeRouting(), family)


def compiled_ipvs(routing: ServiceRouting) -> None:
    marks = assign_marks([routing], {}, Marks({}))
    add_service(routing, marks.numbers, "rr", {})
    list(shared_rows(routing))


def followed_by_conntrack(routing: ServiceRouting) -> None:
    Frontends().replace(routing.name, routing)


def checked_for_affinity(routing: ServiceRouting) -> None:
    expectations([routing])


PARTS = (compiled_iptables, compiled_ipvs, followed_by_conntrack, checked_for_affinity)


@pytest.mark.parametrize(
    "field",
    [
        "externalIPs",
        "ingress",
        "source ranges",
        "ports",
        "endpoints",
        "local endpoints",
        "terminating endpoints",
        "affinity",
    ],
)
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_the_dataplanes_work_is_linear(part: Callable[[ServiceRouting], None], field: str) -> None:
    few, many = routed(field, FEW), routed(field, MANY)
    part(few)  # fills caches
    most = TWICE_TWICE * instructions(lambda: part(few))
    assert instructions(lambda: part(many)) < most + 100


@pytest.mark.parametrize("field", FIELDS)
def test_the_work_for_a_view_is_linear(field: str) -> None:
    def work(count: int) -> int:
        found, slices = decoded_all(field, count)
        taken = msgspec.structs.replace(
            snapshot(found),
            slices={each.name: each for each in slices},
            routings={WEB: route_service(found, slices, NODE, HOSTNAME)},
        )
        return instructions(lambda: services(taken, "shop/web"))

    assert work(MANY) < TWICE_TWICE * work(FEW)


def test_the_bounds_take_linear_work() -> None:
    def work(count: int) -> int:
        found = decoded(api_service(ports=[{"name": f"p{i}", "port": i + 1} for i in range(count)]))
        assert isinstance(found, Service)
        external = tuple(bytes((192, 0, n // 250, n % 250)) for n in range(count))
        found = msgspec.structs.replace(found, external_ips=external)
        part = decoded(api_slice(count, ports=count))
        assert isinstance(part, EndpointSlice)
        bounds = msgspec.structs.replace(DEFAULT_BOUNDS, frontends=9 * count, endpoints=90 * count)
        return instructions(lambda: within_bounds(found, [part], HOSTNAME, bounds))

    assert work(MANY) < TWICE_TWICE * work(FEW)


def test_the_table_of_shared_values_keeps_small_ones_only() -> None:
    """Ever new hints and ports of a megabyte each must not stay in memory."""
    table = fields._table
    table.cache_clear()
    hints = {"forZones": [{"name": "z" * 1000}]}
    decoded(api_slice(1, ports=300, hints=hints))
    decoded(api_slice(1, hints={"forNodes": [{"name": f"n{n}"} for n in range(300)]}))
    assert table.cache_info().currsize == 0
    first, second = (decoded(api_slice(1, hints={"forZones": [{"name": "a"}]})) for _ in range(2))
    assert isinstance(first, EndpointSlice)
    assert isinstance(second, EndpointSlice)
    assert first.endpoints[0].hint_zones is second.endpoints[0].hint_zones


def test_the_tables_of_ports_keep_short_texts_only() -> None:
    tables = slices._one_port, source_services._one_port
    for table in tables:
        table.cache_clear()
    for port in ({"name": "p" * 1000, "port": 80}, {"protocol": "P" * 1000, "port": 80}):
        decoded(api_slice(1) | {"ports": [port]})
        decoded(api_service(ports=[port]))
    assert [table.cache_info().currsize for table in tables] == [0, 0]
