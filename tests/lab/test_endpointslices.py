from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.endpointslice_controller import Controller
from pyproxy_lab.endpointslices import MANAGED_BY, TRIGGER_TIME, Plan, plan

from tests.lab.api import MERGE, PODS, SERVICES, SLICES, Api, Json, eventually, service

WHEN = "2026-01-02T03:04:05Z"


def svc(**spec: Json) -> Json:
    ports = [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"}]
    return {
        "metadata": {"name": "web", "namespace": "shop", "uid": "u", "labels": {"a": "b"}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "10.96.0.2",
            "ipFamilies": ["IPv4"],
            "selector": {"app": "web"},
            "ports": ports,
            **spec,
        },
    }


def pod(name: str, *addresses: str, **change: Any) -> Json:
    ready = {"type": "Ready", "status": "True" if change.get("ready", True) else "False"}
    meta = {"name": name, "namespace": "shop", "uid": f"uid-{name}", "labels": {"app": "web"}}
    if change.get("terminating"):
        meta["deletionTimestamp"] = WHEN
    port = {"name": "http", "containerPort": change.get("port", 8080), "protocol": "TCP"}
    return {
        "metadata": meta,
        "spec": {
            "nodeName": change.get("node", "node-a"),
            "containers": [{"name": "c", "image": "i", "ports": [port]}],
            **change.get("spec", {}),
        },
        "status": {
            "phase": change.get("phase", "Running"),
            "podIPs": [{"ip": address} for address in addresses],
            "conditions": [ready],
        },
    }


def planned(service: Json, *pods: Json, existing: tuple[Json, ...] = ()) -> Plan:
    return plan(service, pods, {"node-a": "zone-1"}, existing, WHEN)


def only(found: Plan) -> Json:
    (made,) = found.create
    assert not found.update
    assert not found.delete
    return made


def test_a_pod_becomes_an_endpoint() -> None:
    made = only(planned(svc(), pod("p", "10.0.0.1", spec={"hostname": "h", "subdomain": "web"})))
    assert made["addressType"] == "IPv4"
    assert made["ports"] == [{"name": "http", "protocol": "TCP", "port": 8080}]
    assert made["endpoints"] == [
        {
            "addresses": ["10.0.0.1"],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": "p", "uid": "uid-p"},
            "hostname": "h",
            "nodeName": "node-a",
            "zone": "zone-1",
        }
    ]
    meta = made["metadata"]
    assert meta["name"].startswith("web-")
    assert meta["annotations"] == {TRIGGER_TIME: WHEN}
    assert meta["labels"] == {
        "a": "b",
        "kubernetes.io/service-name": "web",
        MANAGED_BY: "endpointslice-controller.k8s.io",
    }
    assert meta["ownerReferences"][0]["uid"] == "u"


@pytest.mark.parametrize(
    ("spec", "change", "conditions"),
    [
        ({}, {"ready": False}, (False, False, False)),
        ({}, {"terminating": True}, (False, True, True)),
        ({}, {"terminating": True, "ready": False}, (False, False, True)),
        ({"publishNotReadyAddresses": True}, {"ready": False}, (True, False, False)),
        ({"publishNotReadyAddresses": True}, {"terminating": True}, (True, True, True)),
    ],
)
def test_conditions(spec: Json, change: Json, conditions: tuple[bool, ...]) -> None:
    (endpoint,) = only(planned(svc(**spec), pod("p", "10.0.0.1", **change)))["endpoints"]
    assert tuple(endpoint["conditions"].values()) == conditions


def test_who_is_no_endpoint() -> None:
    made = only(planned(svc(), pod("a"), pod("b", "10.0.0.1", phase="Failed"), pod("c", "fd00::1")))
    assert (made["endpoints"], made["ports"]) == ([], [])


def test_each_family_has_its_slices() -> None:
    found = planned(svc(ipFamilies=["IPv6", "IPv4"]), pod("p", "10.0.0.1", "fd00::1"))
    shown = {s["addressType"]: s["endpoints"][0]["addresses"] for s in found.create}
    assert shown == {"IPv6": ["fd00::1"], "IPv4": ["10.0.0.1"]}


def test_pods_with_other_numbers_for_a_named_port_go_elsewhere() -> None:
    found = planned(svc(), pod("a", "10.0.0.1"), pod("b", "10.0.0.2", port=9090))
    shown = {s["ports"][0]["port"]: s["endpoints"][0]["addresses"][0] for s in found.create}
    assert shown == {8080: "10.0.0.1", 9090: "10.0.0.2"}


def test_a_headless_service_is_labelled_so() -> None:
    made = only(planned(svc(clusterIP="None", ports=[]), pod("p", "10.0.0.1")))
    assert made["metadata"]["labels"]["service.kubernetes.io/headless"] == ""
    assert made["ports"] == []


@pytest.mark.parametrize(
    ("distribution", "hints"),
    [
        ("PreferClose", {"forZones": [{"name": "zone-1"}]}),
        ("PreferSameZone", {"forZones": [{"name": "zone-1"}]}),
        (
            "PreferSameNode",
            {"forZones": [{"name": "zone-1"}], "forNodes": [{"name": "node-a"}]},
        ),
    ],
)
def test_hints(distribution: str, hints: Json) -> None:
    found = planned(
        svc(trafficDistribution=distribution),
        pod("a", "10.0.0.1"),
        pod("b", "10.0.0.2", ready=False),
    )
    one, two = only(found)["endpoints"]
    assert one["hints"] == hints
    assert "hints" not in two


def apply(existing: tuple[Json, ...], found: Plan) -> tuple[Json, ...]:
    gone = {s["metadata"]["name"] for s in (*found.update, *found.delete)}
    kept = [s for s in existing if s["metadata"]["name"] not in gone]
    new = [*kept, *found.update, *found.create]
    for slice_ in new:
        slice_["metadata"].setdefault("resourceVersion", "1")
    return tuple(new)


PODS_AT = st.dictionaries(st.integers(0, 400), st.sampled_from([8080, 9090]), max_size=350)


FULL = dict.fromkeys(range(250), 8080)
OTHERS = dict.fromkeys(range(120, 400), 9090)


@given(PODS_AT, PODS_AT)
@example(FULL, {})
@example(FULL, OTHERS)
@example(FULL, dict.fromkeys(range(90, 351), 8080))
def test_plans_lead_to_what_is_wanted_and_then_to_nothing(
    first: dict[int, int], second: dict[int, int]
) -> None:
    existing: tuple[Json, ...] = ()
    for wanted in (first, second):
        pods = [pod(f"p{n}", f"10.0.{n // 250}.{n % 250 + 1}", port=p) for n, p in wanted.items()]
        existing = apply(existing, planned(svc(), *pods, existing=existing))
        shown = {
            endpoint["targetRef"]["name"]: slice_["ports"][0]["port"]
            for slice_ in existing
            for endpoint in slice_["endpoints"]
        }
        assert shown == {f"p{n}": port for n, port in wanted.items()}
        assert sum(len(s["endpoints"]) for s in existing) == len(wanted)
        assert all(len(s["endpoints"]) <= 100 for s in existing)
        assert existing, "a Service has a slice even without endpoints"
        again = planned(svc(), *pods, existing=existing)
        assert again == Plan()


@pytest.fixture
def api() -> Iterator[Api]:
    settings = Settings(token="t")
    with ApiServer.running(settings) as server, Controller.running(server.url, "t"):
        yield Api(server.url, "t")


def addresses(api: Api, name: str) -> set[str]:
    query = f"?labelSelector=kubernetes.io/service-name%3D{name}"
    return {
        endpoint["addresses"][0]
        for slice_ in api.ok("GET", SLICES + query)["items"]
        for endpoint in slice_["endpoints"]
        if endpoint["conditions"]["ready"]
    }


def start_pod(api: Api, name: str, address: str) -> None:
    made = pod(name, address)
    made["metadata"] = {"name": name, "labels": {"app": "web"}}
    api.ok("POST", PODS, made)
    api.ok("PATCH", f"{PODS}/{name}/status", {"status": made["status"]}, MERGE)


def test_slices_follow_pods_and_services(api: Api) -> None:
    api.ok("POST", SERVICES, service("web", selector={"app": "web"}))
    start_pod(api, "a", "10.0.0.1")
    start_pod(api, "b", "10.0.0.2")
    eventually(lambda: addresses(api, "web") == {"10.0.0.1", "10.0.0.2"})

    not_ready = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
    api.ok("PATCH", f"{PODS}/a/status", not_ready, MERGE)
    eventually(lambda: addresses(api, "web") == {"10.0.0.2"})
    api.ok("PATCH", f"{PODS}/b", {"metadata": {"labels": {"app": "other"}}}, MERGE)
    eventually(lambda: addresses(api, "web") == set())
    api.ok("PATCH", f"{SERVICES}/web", {"spec": {"selector": {"app": "other"}}}, MERGE)
    eventually(lambda: addresses(api, "web") == {"10.0.0.2"})
    api.ok("DELETE", f"{PODS}/b")
    eventually(lambda: addresses(api, "web") == set())
    api.ok("DELETE", f"{SERVICES}/web")
    eventually(lambda: api.ok("GET", SLICES)["items"] == [])


def test_slices_that_are_not_its_own_are_left_alone(api: Api) -> None:
    foreign = {
        "metadata": {"name": "x", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": True}}],
    }
    api.ok("POST", SLICES, foreign)
    api.ok("POST", SERVICES, service("manual"))
    api.ok("POST", SERVICES, service("web", selector={"app": "web"}))
    start_pod(api, "a", "10.0.0.1")
    eventually(lambda: addresses(api, "web") == {"10.0.0.1", "192.0.2.1"})
    api.ok("DELETE", f"{SERVICES}/web")
    eventually(lambda: addresses(api, "web") == {"192.0.2.1"})
    assert addresses(api, "manual") == set()


def test_a_slice_of_its_own_that_somebody_deletes_comes_back(api: Api) -> None:
    api.ok("POST", SERVICES, service("web", selector={"app": "web"}))
    start_pod(api, "a", "10.0.0.1")
    eventually(lambda: addresses(api, "web") == {"10.0.0.1"})
    for slice_ in api.ok("GET", SLICES)["items"]:
        api("DELETE", f"{SLICES}/{slice_['metadata']['name']}")
    eventually(lambda: addresses(api, "web") == {"10.0.0.1"})


def test_the_controller_gets_over_lost_watches() -> None:
    with ApiServer.running(Settings()) as server, Controller.running(server.url):
        api = Api(server.url)
        api.ok("POST", SERVICES, service("web", selector={"app": "web"}))
        eventually(lambda: server.watch_count == 4)
        server.close_watches()
        server.forget_history()
        start_pod(api, "a", "10.0.0.1")
        eventually(lambda: addresses(api, "web") == {"10.0.0.1"})


def test_a_service_that_cannot_be_read_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    def unchecked(selector: Json) -> Json:
        meta = {"name": "a", "namespace": "default"}
        spec = {"type": "ClusterIP", "selector": selector, "ports": [{"port": 80}]}
        return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}

    message = "cannot reconcile services default/a: trying again"
    with ApiServer.running(Settings()) as server:
        api = Api(server.url)
        start_pod(api, "one", "10.0.0.1")
        server.load([unchecked("app")])
        with Controller.running(server.url):
            eventually(lambda: message in caplog.messages)
            api.ok("POST", SERVICES, service("web", selector={"app": "web"}))
            eventually(lambda: addresses(api, "web") == {"10.0.0.1"})
            # A change of a pod is compared with all Services of its namespace.
            start_pod(api, "two", "10.0.0.2")
            eventually(lambda: addresses(api, "web") == {"10.0.0.1", "10.0.0.2"})
            server.load([unchecked({"app": "web"})])
            eventually(lambda: addresses(api, "a") == {"10.0.0.1", "10.0.0.2"})
    assert caplog.messages.count(message) == 1
