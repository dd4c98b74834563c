"""Create, get, list, update and delete, whatever the kind."""

from __future__ import annotations

import socket

import pytest
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings

from pyproxy.errors import UsageError
from tests.lab.api import (
    JSON_PATCH,
    MERGE,
    PODS,
    SERVICES,
    SLICES,
    STRATEGIC,
    Api,
    Json,
    endpoint_slice,
    eventually,
    service,
)

NODES = "/api/v1/nodes"
NAMESPACES = "/api/v1/namespaces"
POD = {
    "metadata": {"name": "p", "labels": {"app": "web"}},
    "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]},
}


def names(listed: Json) -> list[str]:
    return [item["metadata"]["name"] for item in listed["items"]]


def test_an_update_of_an_old_version_is_a_conflict(api: Api) -> None:
    old = api.ok("POST", SERVICES, service("web"))
    new = {**old, "spec": {**old["spec"], "selector": {"a": "b"}}}
    assert api.ok("PUT", f"{SERVICES}/web", new)["spec"]["selector"] == {"a": "b"}
    response = api("PUT", f"{SERVICES}/web", old)
    assert (response.status, response.body["reason"]) == (409, "Conflict")
    for change in ({"resourceVersion": old["metadata"]["resourceVersion"]}, {"uid": "other"}):
        assert api("PATCH", f"{SERVICES}/web", {"metadata": change}, MERGE).status == 409
    del new["metadata"]["resourceVersion"]
    assert api("PUT", f"{SERVICES}/web", new).status == 200


@pytest.mark.parametrize(
    ("content_type", "change"),
    [
        (MERGE, {"metadata": {"labels": {"a": "b"}}}),
        (STRATEGIC, {"metadata": {"labels": {"a": "b"}}}),
        (JSON_PATCH, [{"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}]),
    ],
)
def test_patches(api: Api, content_type: str, change: Json) -> None:
    api.ok("POST", SLICES, endpoint_slice("s", "10.244.0.1"))
    patched = api.ok("PATCH", f"{SLICES}/s", change, content_type)
    assert patched["metadata"]["labels"]["a"] == "b"
    assert patched["endpoints"][0]["addresses"] == ["10.244.0.1"]


def test_what_cannot_be_read_is_refused(api: Api) -> None:
    api.ok("POST", SERVICES, service("web"))
    assert api("PATCH", f"{SERVICES}/web", {}, "application/apply-patch+yaml").status == 400
    assert api("POST", SERVICES, service("x"), "application/yaml").status == 415
    assert api("POST", SERVICES, []).status == 400
    assert api("POST", SERVICES, {"kind": "Pod"}).status == 400
    assert api("POST", SERVICES, {"apiVersion": "v2"}).status == 400
    assert api("POST", SERVICES, {"spec": {"ports": "80"}}).status == 400
    assert api("POST", SERVICES, {"spec": {"ports": [{"port": True}]}}).status == 400
    assert api("POST", f"{NAMESPACES}/none/services", service("x")).status == 404
    assert api("PUT", f"{SERVICES}/web", service("other")).status == 400
    assert api("GET", "/api/v1/podtemplates").status == 404
    assert api("GET", "/apis/apps/v2/deployments").status == 404
    assert api("POST", "/api/v1/services", service("x")).status == 405
    assert api("GET", f"{SERVICES}?labelSelector=a+in").status == 400
    assert api("GET", f"{SERVICES}?fieldSelector=spec.ports%3D1").status == 400
    assert api("GET", f"{SERVICES}?limit=x").status == 400


def test_unknown_fields_are_dropped_or_refused(api: Api) -> None:
    body = service("web", clusterIp="10.96.0.9")
    strict = api("POST", f"{SERVICES}?fieldValidation=Strict", body)
    assert strict.status == 400
    assert 'unknown field "spec.clusterIp"' in strict.body["message"]
    warned = api("POST", SERVICES, body)
    assert warned.headers["Warning"] == '299 - "unknown field \\"spec.clusterIp\\""'
    assert "clusterIp" not in warned.body["spec"]


def test_pages_show_the_list_as_it_was(server: ApiServer, api: Api) -> None:
    for name in ("a", "b", "c", "d"):
        api.ok("POST", SERVICES, service(name))
    first = api.ok("GET", f"{SERVICES}?limit=2")
    assert names(first) == ["a", "b"]
    assert first["metadata"]["remainingItemCount"] == 3
    api.ok("POST", SERVICES, service("bb"))
    api.ok("DELETE", f"{SERVICES}/c")
    api.ok("PATCH", f"{SERVICES}/d", {"metadata": {"labels": {"new": "1"}}}, MERGE)
    token = first["metadata"]["continue"]
    rest = api.ok("GET", f"{SERVICES}?limit=5&continue={token}")
    assert names(rest) == ["c", "d", "kubernetes"]
    assert "labels" not in rest["items"][1]["metadata"]
    assert rest["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert "continue" not in rest["metadata"]
    exact = f"resourceVersion={first['metadata']['resourceVersion']}&resourceVersionMatch=Exact"
    assert names(api.ok("GET", f"{SERVICES}?{exact}")) == ["a", "b", "c", "d", "kubernetes"]
    server.forget_history()
    gone = api("GET", f"{SERVICES}?limit=5&continue={token}")
    assert (gone.status, gone.body["reason"]) == (410, "Expired")
    assert api("GET", f"{SERVICES}?limit=5&continue=x").status == 400


def test_lists_select(api: Api) -> None:
    for name, label in (("a", "1"), ("b", "2"), ("c", "1")):
        api.ok(
            "POST", SERVICES, {**service(name), "metadata": {"name": name, "labels": {"l": label}}}
        )
    assert names(api.ok("GET", f"{SERVICES}?labelSelector=l%3D1")) == ["a", "c"]
    assert names(api.ok("GET", f"{SERVICES}?labelSelector=%21l")) == ["kubernetes"]
    assert names(api.ok("GET", f"{SERVICES}?fieldSelector=metadata.name%3Db")) == ["b"]
    page = api.ok("GET", f"{SERVICES}?labelSelector=l%3D1&limit=1")
    assert names(page) == ["a"]
    assert "remainingItemCount" not in page["metadata"]
    newer = int(page["metadata"]["resourceVersion"]) + 100
    assert api("GET", f"{SERVICES}?resourceVersion={newer}").status == 504


def test_a_namespace_takes_what_is_in_it_along(api: Api) -> None:
    api.ok("POST", NAMESPACES, {"metadata": {"name": "shop"}})
    inside = f"{NAMESPACES}/shop/services"
    api.ok("POST", inside, service("web", clusterIP="10.96.5.5"))
    gone = api.ok("DELETE", f"{NAMESPACES}/shop")
    assert gone["status"]["phase"] == "Terminating"
    assert api("GET", f"{inside}/web").status == 404
    assert api("GET", f"{NAMESPACES}/shop").status == 404
    api.ok("POST", SERVICES, service("web", clusterIP="10.96.5.5"))
    assert set(names(api.ok("GET", NAMESPACES))) == {
        "default", "kube-system", "kube-public", "kube-node-lease",
    }  # fmt: skip


def test_a_pod_terminates_for_its_grace_period(api: Api) -> None:
    api.ok("POST", PODS, POD)
    marked = api.ok("DELETE", f"{PODS}/p?gracePeriodSeconds=300")
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 300
    assert "deletionTimestamp" in api.ok("GET", f"{PODS}/p")["metadata"]
    marked = api.ok("DELETE", f"{PODS}/p", {"gracePeriodSeconds": 1})
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 1
    eventually(lambda: api("GET", f"{PODS}/p").status == 404)
    api.ok("POST", PODS, POD)
    api.ok("DELETE", f"{PODS}/p")
    assert api("GET", f"{PODS}/p").status == 404


def test_a_finalizer_holds_an_object(api: Api) -> None:
    body = service("web")
    body["metadata"]["finalizers"] = ["example.com/wait"]
    api.ok("POST", SERVICES, body)
    assert "deletionTimestamp" in api.ok("DELETE", f"{SERVICES}/web")["metadata"]
    api.ok("PATCH", f"{SERVICES}/web", {"metadata": {"finalizers": None}}, MERGE)
    assert api("GET", f"{SERVICES}/web").status == 404


def test_a_deletion_can_name_the_object_that_it_means(api: Api) -> None:
    api.ok("POST", SERVICES, service("web"))
    other = {"preconditions": {"uid": "other"}}
    assert api("DELETE", f"{SERVICES}/web", other).status == 409
    assert names(api.ok("DELETE", f"{SERVICES}?fieldSelector=metadata.name%3Dweb")) == ["web"]
    assert api("DELETE", f"{SERVICES}/web").status == 404


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"addressType": "IPv5"}, "addressType"),
        ({"addressType": None}, "addressType"),
        ({"endpoints": [{"addresses": []}]}, "endpoints[0].addresses"),
        ({"endpoints": [{"addresses": ["x"]}]}, "endpoints[0].addresses[0]"),
        ({"endpoints": [{"addresses": ["fd00::1"]}]}, "endpoints[0].addresses[0]"),
        ({"endpoints": [{"addresses": ["127.0.0.1"]}]}, "endpoints[0].addresses[0]"),
        ({"endpoints": [{"addresses": ["169.254.0.1"]}]}, "endpoints[0].addresses[0]"),
        ({"endpoints": [{"addresses": ["1.2.3.4"], "nodeName": "A_"}]}, "endpoints[0].nodeName"),
        ({"endpoints": [{"addresses": ["1.2.3.4"]}] * 1001}, "endpoints"),
        ({"ports": [{"port": 0}]}, "ports[0].port"),
        ({"ports": [{"name": "a"}, {"name": "a"}]}, "ports[1].name"),
        ({"ports": [{"protocol": "X"}]}, "ports[0].protocol"),
        ({"metadata": {"name": "a", "labels": {"x": "not ok"}}}, "metadata.labels"),
        ({"metadata": {}}, "metadata.name"),
    ],
)
def test_a_bad_slice_is_refused(api: Api, change: Json, field: str) -> None:
    response = api("POST", SLICES, {**endpoint_slice("a", "10.0.0.1"), **change})
    assert response.status == 422, response.raw
    assert field in [cause["field"] for cause in response.body["details"]["causes"]]


def test_a_slices_generation_counts_changes_of_its_content(api: Api) -> None:
    made = api.ok("POST", SLICES, endpoint_slice("s", "10.244.0.1"))
    assert made["endpoints"][0]["conditions"] == {}
    labelled = api.ok("PATCH", f"{SLICES}/s", {"metadata": {"labels": {"x": "1"}}}, MERGE)
    assert labelled["metadata"]["generation"] == 1
    changed = api.ok("PUT", f"{SLICES}/s", endpoint_slice("s", "10.244.0.2"))
    assert changed["metadata"]["generation"] == 2
    assert api("PATCH", f"{SLICES}/s", {"addressType": "IPv6"}, MERGE).status == 422


def test_a_nodes_pod_networks_stay(api: Api) -> None:
    node = {"metadata": {"name": "n"}, "spec": {"podCIDR": "10.244.1.0/24"}}
    assert api.ok("POST", NODES, node)["spec"]["podCIDRs"] == ["10.244.1.0/24"]
    change = {"spec": {"podCIDR": "10.244.2.0/24", "podCIDRs": ["10.244.2.0/24"]}}
    assert api("PATCH", f"{NODES}/n", change, MERGE).status == 422
    two = {"metadata": {"name": "m"}, "spec": {"podCIDRs": ["10.1.0.0/24", "10.2.0.0/24"]}}
    assert api("POST", NODES, two).status == 422


def test_a_pods_spec_stays_and_its_status_is_its_own(api: Api) -> None:
    made = api.ok("POST", PODS, {**POD, "status": {"phase": "Running"}})
    assert made["status"]["phase"] == "Pending"
    change = {"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 81}]}]}}
    assert api("PATCH", f"{PODS}/p", change, STRATEGIC).status == 422
    status = {"status": {"phase": "Running", "podIPs": [{"ip": "10.244.0.9"}]}}
    running = api.ok("PATCH", f"{PODS}/p/status", status, MERGE)
    assert running["status"]["podIP"] == "10.244.0.9"
    assert names(api.ok("GET", f"{PODS}?fieldSelector=status.phase%3DRunning")) == ["p"]


def test_both_groups_show_the_same_events(api: Api) -> None:
    core = "/api/v1/namespaces/default/events"
    new = "/apis/events.k8s.io/v1/namespaces/default/events"
    event = {
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "Service", "name": "web", "namespace": "default"},
        "message": "taken",
        "reason": "PortTaken",
        "type": "Warning",
        "source": {"component": "pyproxy"},
    }
    api.ok("POST", core, event)
    shown = api.ok("GET", f"{new}/e")
    assert (shown["note"], shown["regarding"]["name"]) == ("taken", "web")
    api.ok("PATCH", f"{new}/e", {"note": "free"}, MERGE)
    assert api.ok("GET", f"{core}/e")["message"] == "free"
    query = "?fieldSelector=involvedObject.name%3Dweb"
    assert names(api.ok("GET", core + query)) == ["e"]
    listed = api.ok("GET", new)["items"]
    assert [item["note"] for item in listed] == ["free"]
    bad = {**event, "involvedObject": {"kind": "Service", "namespace": "other"}}
    assert api("POST", core, {**bad, "metadata": {"name": "f"}}).status == 422


def test_the_proxys_token_may_do_what_a_proxy_needs() -> None:
    with ApiServer.running(Settings(token="admin", proxy_token="proxy")) as server:
        proxy, anonymous = Api(server.url, "proxy"), Api(server.url)
        for path in (SERVICES, SLICES, NODES):
            assert proxy("GET", path).status == 200
        assert proxy("GET", PODS).status == 403
        assert proxy("POST", SERVICES, service("web")).status == 403
        assert proxy("GET", "/version").status == 200
        assert anonymous("GET", SERVICES).status == 401
        assert anonymous("GET", "/healthz").raw == b"ok"


def test_loading_needs_no_checks_and_keeps_the_status(server: ApiServer, api: Api) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", **POD, "status": {"phase": "Running"}}
    slices = [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            **endpoint_slice(f"s{n}", "10.244.0.1"),
            "metadata": {"name": f"s{n}", "namespace": "new"},
        }
        for n in range(3)
    ]
    assert server.load([pod, *slices]) == 4
    assert api.ok("GET", f"{PODS}/p")["status"]["phase"] == "Running"
    inside = "/apis/discovery.k8s.io/v1/namespaces/new/endpointslices"
    assert names(api.ok("GET", inside)) == ["s0", "s1", "s2"]
    assert server.load(slices) == 3


def test_a_taken_port_is_a_usage_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(port=taken.getsockname()[1])
        with pytest.raises(UsageError, match="--listen"), ApiServer.running(settings):
            pass
