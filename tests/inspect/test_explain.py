"""`pyproxy explain` on a working node: each planted fault fails its step."""

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


def older(**spec: Any) -> Object:
    made = service("older", "10.96.0.31")
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
    "no such service": ([], TARGET, "service", "the Service shop/web does not exist"),
    "unused address": ([], "10.96.99.99:80", "service", "no Service has 10.96.99.99:80/tcp"),
    "another proxy's label": (
        [labelled(service_proxy_name="cilium"), ready()],
        TARGET,
        "service",
        "shop/web: the label service.kubernetes.io/service-proxy-name: cilium leaves it to another "
        "proxy",
    ),
    "headless": (
        [service("web", "None") | {"spec": {"clusterIP": "None", "ports": [{"port": 80}]}}],
        TARGET,
        "service",
        "shop/web: it is headless: DNS resolves it to pod addresses, without a proxy",
    ),
    "ExternalName": (
        [service("web", "") | {"spec": {"type": "ExternalName", "externalName": "db.example.com"}}],
        TARGET,
        "service",
        "shop/web: it is an ExternalName: DNS resolves it to db.example.com, without a proxy",
    ),
    "no selector and no endpoints": (
        [web()],
        TARGET,
        "selector",
        "the Service has no selector and no endpoints",
    ),
    "selector that matches nothing": (
        [web(selector={"app": "wbe"})],
        TARGET,
        "selector",
        "the selector app=wbe matches no pod in namespace shop",
    ),
    "wrong family": (
        [web(), in_family("IPv6", "fd10:1::11")],
        TARGET,
        "slices",
        "the address is IPv4, but all endpoints are IPv6",
    ),
    "targetPort that no slice has": (
        [ported(targetPort="http-alt"), without_ports()],
        TARGET,
        "ports",
        "port http 80/TCP: no slice has its targetPort 'http-alt': they have no port",
    ),
    "port by another name": (
        [ported(name="web"), ready()],
        TARGET,
        "ports",
        "port web 80/TCP: no slice has it: they have http 8080/TCP",
    ),
    "port that it does not have": (
        [web(), ready()],
        f"{ADDRESS}:81",
        "address",
        f"this node does not serve {ADDRESS}:81/tcp: shop/web has the address, but only the ports "
        "80/tcp",
    ),
    "unready pods": (
        [web(), conditions(ready=False, serving=False)],
        TARGET,
        "readiness",
        f"no endpoint is ready: {A1}:8080, {B1}:8080",
    ),
    "all terminating": (
        [web(), conditions(ready=False, serving=False, terminating=True)],
        TARGET,
        "readiness",
        "all endpoints (2) are terminating and do not serve",
    ),
    "internal policy Local without a local endpoint": (
        [web(internalTrafficPolicy="Local"), ready(B1)],
        TARGET,
        "policy",
        "internalTrafficPolicy is Local, but no endpoint of http 80/TCP is on this node (node-a): "
        "connections are dropped",
    ),
    "external policy Local without a local endpoint": (
        [web(type="NodePort", externalTrafficPolicy="Local"), ready(B1)],
        TARGET,
        "policy",
        "externalTrafficPolicy is Local, but no endpoint of http 80/TCP is on this node (node-a): "
        "external connections are dropped",
    ),
    "external IP that another Service has": (
        [
            older(externalIPs=["192.0.2.30"]),
            web(externalIPs=["192.0.2.30"]),
            ready(),
        ],
        TARGET,
        "fields",
        "192.0.2.30 port 80/TCP is not proxied for port 'http'",
    ),
    "invalid field": (
        [web(externalIPs=["2001:db8::1"]), ready()],
        TARGET,
        "fields",
        "spec.externalIPs[0]: ",
    ),
}


def failed_steps(result: Any) -> list[tuple[str, str]]:
    return [(s["name"], s["message"]) for s in result.json["steps"] if s["result"] == "failed"]


@pytest.mark.parametrize(("objects", "target", "step", "message"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_found(
    node: InspectedNode, objects: list[Object], target: str, step: str, message: str
) -> None:
    node.create(*objects)
    result = node.command("explain", target, "-o", "json")
    failed = failed_steps(result)
    assert failed, result.out
    assert failed[0][0] == step
    assert message in failed[0][1]
    assert result.json["verdict"] == failed[0][1]
    assert result.json["fix"]
    assert result.status == 1


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
def test_no_step_fails_without_a_fault(
    node: InspectedNode, objects: list[Object], target: str
) -> None:
    node.create(*objects)
    result = node.command("explain", target, "-o", "json")
    assert failed_steps(result) == []
    assert result.status == 0
    assert result.json["verdict"].startswith("no fault found; checked: agent, service, fields")


def test_an_endpoint_hinted_for_another_zone_is_a_note(node: InspectedNode) -> None:
    node.create(web(), hinted(a="zone-1", b="zone-2"))
    (policy,) = (
        step
        for step in node.command("explain", TARGET, "-o", "json").json["steps"]
        if step["name"] == "policy"
    )
    assert policy["result"] == "note"
    assert policy["message"] == (
        f"this node sends to 1 endpoint: {A1}:8080; not used: {B1}:8080 (hinted for other zones)"
    )


def test_a_client_outside_the_source_ranges_is_found(node: InspectedNode) -> None:
    node.create(balanced(loadBalancerSourceRanges=["198.51.100.0/24"]), ready())
    status = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.31"}]}}}
    node.api.patch(f"{collection(NAMESPACE, 'services')}/web/status", status)
    node.wait_programmed()
    rejected = node.command("explain", "192.0.2.31:80", "--from", "203.0.113.9", "-o", "json")
    assert failed_steps(rejected) == [
        (
            "source ranges",
            "203.0.113.9 is in none of the source ranges (198.51.100.0/24): its packets to load "
            "balancer addresses are dropped",
        )
    ]
    assert (
        failed_steps(
            node.command("explain", "192.0.2.31:80", "--from", "198.51.100.9", "-o", "json")
        )
        == []
    )


def test_a_node_port_on_an_unserved_address_is_found(node: InspectedNode) -> None:
    made = web(type="NodePort")
    made["spec"]["ports"][0]["nodePort"] = 30080
    node.create(made, ready())
    assert failed_steps(node.command("explain", "172.30.0.11:30080", "-o", "json")) == []
    failed = failed_steps(node.command("explain", "127.0.0.1:30080", "-o", "json"))
    assert failed == [
        (
            "address",
            "this node does not serve 127.0.0.1:30080/tcp: it is the node port of shop/web, which "
            "this node serves on 172.30.0.11, fd30::11 only",
        )
    ]


@pytest.mark.parametrize(
    ("change", "line"),
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
            f"unexpected: no-endpoint-services4 {{ {ADDRESS} . tcp . 80",
        ),
    ],
    ids=["verdict", "endpoint", "no-endpoint"],
)
def test_drift_is_found(node: InspectedNode, change: str, line: str) -> None:
    node.create(web(), ready())
    with node.paused():
        node.nft(change)
        result = node.without_agent("explain", TARGET, "-o", "json")
    (step,) = (step for step in result.json["steps"] if step["result"] == "failed")
    assert step["name"] == "kernel"
    assert [each for each in step["details"] if each.startswith(line)], step
    node.wait_repaired()
    assert failed_steps(node.command("explain", TARGET, "-o", "json")) == []


def test_a_stale_conntrack_entry_is_found(node: InspectedNode) -> None:
    port = {"name": "http", "protocol": "UDP", "port": 8080}
    node.create(ported(protocol="UDP"), ready(A1) | {"ports": [port]})
    node.cluster.network.namespace("na").call(_send_datagram)
    with node.paused():
        node.api.replace(node.path(ready()), ready(A2) | {"ports": [port]})
        result = node.without_agent("explain", f"{ADDRESS}:80/udp", "-o", "json")
    message = dict(failed_steps(result))["conntrack"]
    assert message.startswith("1 stale entry: ")
    assert message.endswith(f"-> {ADDRESS}:80 goes to {A1}:8080")


def _send_datagram() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((ADDRESS, 80))
        sock.send(b"hello")


def test_the_selector_step_lists_the_pods(node: InspectedNode) -> None:
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
        assert (selector["result"], selector["message"]) == ("ok", "app=web matches 1 pod: web-1")
    finally:
        node.api.delete(f"{path}/web-1", now=True)


def test_a_target_that_cannot_be_parsed_is_a_usage_error(node: InspectedNode) -> None:
    result = node.command("explain", "10.96.0.1:0")
    assert result.status == 2
    assert result.err == (
        "pyproxy: '10.96.0.1:0' is not a destination: write ADDRESS:PORT, with a port from 1 to "
        "65535, and /udp or /sctp after it unless it is TCP; for IPv6 [ADDRESS]:PORT, or "
        "NAMESPACE/NAME for a Service\n"
    )
