"""`pyproxy explain` on a node that works: each planted fault is found in its step, and named."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from pyproxy_lab.client import PODS, collection

from tests.agent.live import endpoint_slice, service
from tests.inspect.node import NAMESPACE, InspectedNode

pytestmark = pytest.mark.kernel
Object = dict[str, Any]

A1, A2, B1 = "10.244.1.11", "10.244.1.12", "10.244.2.11"
ADDRESS = "10.96.0.30"
TARGET = f"{NAMESPACE}/web"


def web(**spec: Any) -> Object:
    made = service("web", ADDRESS)
    made["spec"] |= spec
    return made


def elder(**spec: Any) -> Object:
    made = service("elder", "10.96.0.31")
    made["spec"] |= spec
    return made


def ready(*addresses: str) -> Object:
    return endpoint_slice("web", addresses or (A1, B1))


def conditions(**values: bool) -> Object:
    made = ready()
    for endpoint in made["endpoints"]:
        endpoint["conditions"] = values
    return made


def labelled(**labels: str) -> Object:
    made = web()
    made["metadata"]["labels"] = {
        f"service.kubernetes.io/{k.replace('_', '-')}": v for k, v in labels.items()
    }
    return made


def ported(**port: Any) -> Object:
    made = web()
    made["spec"]["ports"][0] |= port
    return made


def balanced(**spec: Any) -> Object:
    return web(type="LoadBalancer", **spec)


def in_family(family: str, *addresses: str) -> Object:
    made = ready(*addresses)
    made["addressType"] = family
    return made


def without_ports() -> Object:
    return ready() | {"ports": []}


def hinted(**zones: str) -> Object:
    made = ready()
    for endpoint, zone in zip(made["endpoints"], zones.values(), strict=True):
        endpoint["hints"] = {"forZones": [{"name": zone}]}
    return made


FAULTS: dict[str, tuple[list[Object], str, str, str]] = {
    "no such service": ([], TARGET, "service", "there is no Service shop/web"),
    "address of nobody": ([], "10.96.99.99:80", "service", "no Service has 10.96.99.99:80/tcp"),
    "another proxy's label": (
        [labelled(service_proxy_name="cilium"), ready()],
        TARGET,
        "service",
        "shop/web: it is left to another proxy by its label "
        "service.kubernetes.io/service-proxy-name: cilium",
    ),
    "headless": (
        [service("web", "None") | {"spec": {"clusterIP": "None", "ports": [{"port": 80}]}}],
        TARGET,
        "service",
        "shop/web: it is headless: DNS gives its pods' own addresses, and no packet passes a proxy",
    ),
    "ExternalName": (
        [service("web", "") | {"spec": {"type": "ExternalName", "externalName": "db.example.com"}}],
        TARGET,
        "service",
        "shop/web: it is an ExternalName: DNS has db.example.com for its name, and no packet "
        "passes a proxy",
    ),
    "no selector and no endpoints": (
        [web()],
        TARGET,
        "selector",
        "it has no selector, and nobody has written endpoints for it",
    ),
    "selector that matches nothing": (
        [web(selector={"app": "wbe"})],
        TARGET,
        "selector",
        "its selector app=wbe matches no pod of namespace shop",
    ),
    "wrong family": (
        [web(), in_family("IPv6", "fd10:1::11")],
        TARGET,
        "slices",
        "its address is IPv4, and all its endpoints are IPv6",
    ),
    "targetPort that no slice has": (
        [ported(targetPort="http-alt"), without_ports()],
        TARGET,
        "ports",
        "port http 80/TCP leads to targetPort 'http-alt', which no slice has: they have no port "
        "at all",
    ),
    "port by another name": (
        [ported(name="web"), ready()],
        TARGET,
        "ports",
        "port web 80/TCP is in none of its slices: they have http 8080/TCP",
    ),
    "port that it does not have": (
        [web(), ready()],
        f"{ADDRESS}:81",
        "address",
        f"{ADDRESS}:81/tcp is not answered on this node: the address is its own, and it has no "
        "such port, but 80/tcp",
    ),
    "unready pods": (
        [web(), conditions(ready=False, serving=False)],
        TARGET,
        "readiness",
        f"none of its 2 endpoints is ready: {A1}:8080, {B1}:8080",
    ),
    "all terminating": (
        [web(), conditions(ready=False, serving=False, terminating=True)],
        TARGET,
        "readiness",
        "all of its 2 endpoints are terminating and serve no more",
    ),
    "internal policy Local without a local endpoint": (
        [web(internalTrafficPolicy="Local"), ready(B1)],
        TARGET,
        "policy",
        "internalTrafficPolicy is Local, and none of the endpoints of http 80/TCP is on this "
        "node, node-a: connections are dropped",
    ),
    "external policy Local without a local endpoint": (
        [web(type="NodePort", externalTrafficPolicy="Local"), ready(B1)],
        TARGET,
        "policy",
        "externalTrafficPolicy is Local, and none of the endpoints of http 80/TCP is on this "
        "node, node-a: connections from outside are dropped",
    ),
    "external IP that another Service has": (
        [
            elder(externalIPs=["192.0.2.30"]),
            web(externalIPs=["192.0.2.30"]),
            ready(),
        ],
        TARGET,
        "fields",
        "192.0.2.30 port 80/TCP is not answered for port 'http'",
    ),
    "set-aside field": (
        [web(externalIPs=["2001:db8::1"]), ready()],
        TARGET,
        "fields",
        "spec.externalIPs[0]: ",
    ),
}


def crossed(routing: Any) -> list[tuple[str, str]]:
    return [(s["name"], s["says"]) for s in routing.json["steps"] if s["mark"] == "wrong"]


@pytest.mark.parametrize(("objects", "target", "step", "says"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_found(
    node: InspectedNode, objects: list[Object], target: str, step: str, says: str
) -> None:
    node.create(*objects)
    routing = node.command("explain", target, "-o", "json")
    wrong = crossed(routing)
    assert wrong, routing.out
    assert wrong[0][0] == step
    assert says in wrong[0][1]
    assert routing.json["verdict"] == wrong[0][1]
    assert routing.json["fix"]
    assert routing.status == 1


HEALTHY: dict[str, tuple[list[Object], str]] = {
    "cluster IP": ([web(), ready()], TARGET),
    "by its address": ([web(), ready()], f"{ADDRESS}:80"),
    "node port": ([web(type="NodePort"), ready()], TARGET),
    "Local with a local endpoint": (
        [web(type="NodePort", externalTrafficPolicy="Local"), ready()],
        TARGET,
    ),
    "some unready": ([web(), ready(A1, A2, B1)], TARGET),
    "affinity": ([web(sessionAffinity="ClientIP"), ready()], TARGET),
    "hints for this zone": ([web(), hinted(a="zone-1", b="zone-2")], TARGET),
    "UDP": (
        [
            ported(protocol="UDP"),
            ready() | {"ports": [{"name": "http", "protocol": "UDP", "port": 8080}]},
        ],
        f"{ADDRESS}:80/udp",
    ),
}


@pytest.mark.parametrize(("objects", "target"), HEALTHY.values(), ids=HEALTHY)
def test_nothing_is_crossed_where_all_is_well(
    node: InspectedNode, objects: list[Object], target: str
) -> None:
    node.create(*objects)
    routing = node.command("explain", target, "-o", "json")
    assert crossed(routing) == []
    assert (routing.status, routing.json["verdict"]) == (0, "nothing is wrong on this node")


def test_hints_for_other_zones_are_told(node: InspectedNode) -> None:
    node.create(web(), hinted(a="zone-1", b="zone-2"))
    (policy,) = (
        step
        for step in node.command("explain", TARGET, "-o", "json").json["steps"]
        if step["name"] == "policy"
    )
    assert policy["mark"] == "note"
    assert policy["says"] == (
        f"this node sends to 1 endpoint: {A1}:8080; left out: {B1}:8080 (hinted for other zones)"
    )


def test_source_ranges_shut_a_client_out(node: InspectedNode) -> None:
    node.create(balanced(loadBalancerSourceRanges=["198.51.100.0/24"]), ready())
    status = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.31"}]}}}
    node.api.patch(f"{collection(NAMESPACE, 'services')}/web/status", status)
    node.heard()
    refused = node.command("explain", "192.0.2.31:80", "--from", "203.0.113.9", "-o", "json")
    assert crossed(refused) == [
        (
            "source ranges",
            "203.0.113.9 is in none of its source ranges (198.51.100.0/24): dropped at its load "
            "balancer addresses",
        )
    ]
    assert (
        crossed(node.command("explain", "192.0.2.31:80", "--from", "198.51.100.9", "-o", "json"))
        == []
    )


def test_a_node_port_on_another_address_is_told(node: InspectedNode) -> None:
    made = web(type="NodePort")
    made["spec"]["ports"][0]["nodePort"] = 30080
    node.create(made, ready())
    assert crossed(node.command("explain", "172.30.0.11:30080", "-o", "json")) == []
    wrong = crossed(node.command("explain", "127.0.0.1:30080", "-o", "json"))
    assert wrong == [
        (
            "address",
            "127.0.0.1:30080/tcp is not answered on this node: it is its node port, which this "
            "node answers on 172.30.0.11, fd30::11 alone",
        )
    ]


@pytest.mark.parametrize(
    ("by_hand", "line"),
    [
        (
            f"delete element inet pyproxy services4 {{ {ADDRESS} . tcp . 80 }}",
            f"missing: services4 {{ {ADDRESS} . tcp . 80",
        ),
        (
            f"delete element inet pyproxy endpoints4 {{ {ADDRESS} . tcp . 80 . 0 }}",
            f"missing: endpoints4 {{ {ADDRESS} . tcp . 80 . 0",
        ),
        (
            f"add element inet pyproxy no-endpoint-services4 {{ {ADDRESS} . tcp . 80 }}",
            f"should not be: no-endpoint-services4 {{ {ADDRESS} . tcp . 80",
        ),
    ],
    ids=["verdict", "endpoint", "refusal"],
)
def test_drift_in_the_kernel_is_seen(node: InspectedNode, by_hand: str, line: str) -> None:
    node.create(web(), ready())
    with node.paused():
        node.nft(by_hand)
        routing = node.alone("explain", TARGET, "-o", "json")
    (step,) = (step for step in routing.json["steps"] if step["mark"] == "wrong")
    assert step["name"] == "kernel"
    assert [each for each in step["lines"] if each.startswith(line)], step
    node.repaired()
    assert crossed(node.command("explain", TARGET, "-o", "json")) == []


def test_a_flow_that_goes_elsewhere_is_seen(node: InspectedNode) -> None:
    port = {"name": "http", "protocol": "UDP", "port": 8080}
    node.create(ported(protocol="UDP"), ready(A1) | {"ports": [port]})
    node.cluster.network.namespace("na").call(_send_datagram)
    with node.paused():
        node.api.replace(node.path(ready()), ready(A2) | {"ports": [port]})
        routing = node.alone("explain", f"{ADDRESS}:80/udp", "-o", "json")
    says = dict(crossed(routing))["flows"]
    assert says.startswith("1 flow still go where it sends nobody: ")
    assert says.endswith(f"to {ADDRESS}:80 is answered by {A1}:8080")


def _send_datagram() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((ADDRESS, 80))
        sock.send(b"hello")


def test_pods_are_looked_at_where_the_api_may_be_asked(node: InspectedNode) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web-1", "labels": {"app": "web"}},
        "spec": {"nodeName": "node-a", "containers": [{"name": "web", "image": "web:1"}]},
    }
    path = collection(NAMESPACE, PODS)
    node.api.create(path, pod)
    try:
        node.create(web(selector={"app": "web"}), ready())
        steps = node.command("explain", TARGET, "-o", "json").json["steps"]
        (selector,) = (step for step in steps if step["name"] == "selector")
        assert (selector["mark"], selector["says"]) == ("ok", "app=web matches 1 pod: web-1")
    finally:
        node.api.delete(f"{path}/web-1", now=True)


def test_a_target_that_is_none_is_a_mistake(node: InspectedNode) -> None:
    routing = node.command("explain", "10.96.0.1:0")
    assert routing.status == 2
    assert routing.err == (
        "pyproxy: '10.96.0.1:0' is no destination: write ADDRESS:PORT, with a port from 1 to "
        "65535, and /udp or /sctp behind it where it is not TCP; for IPv6 [ADDRESS]:PORT, or "
        "NAMESPACE/NAME for a Service\n"
    )
