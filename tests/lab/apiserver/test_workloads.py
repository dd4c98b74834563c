"""The kinds of apps/v1, what is only stored, the subresource scale, and what the lab refuses."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from pyproxy_lab.apiserver.refused import REFUSED

from tests.lab.api import JSON_PATCH, MERGE, STRATEGIC, Api

APPS = "/apis/apps/v1/namespaces/default"
CORE = "/api/v1/namespaces/default"
TEMPLATE = {
    "metadata": {"labels": {"app": "web"}},
    "spec": {"containers": [{"name": "web", "image": "web:1"}]},
}


def workload(name: str, **spec: Any) -> Any:
    selector = {"matchLabels": {"app": "web"}}
    return {
        "metadata": {"name": name},
        "spec": {"selector": selector, "template": TEMPLATE, **spec},
    }


@pytest.mark.parametrize(
    ("plural", "path", "value"),
    [
        ("deployments", ("spec", "replicas"), 1),
        ("deployments", ("spec", "strategy", "rollingUpdate", "maxSurge"), "25%"),
        ("deployments", ("spec", "template", "spec", "restartPolicy"), "Always"),
        ("replicasets", ("status", "replicas"), 0),
        ("statefulsets", ("spec", "podManagementPolicy"), "OrderedReady"),
        ("statefulsets", ("spec", "updateStrategy", "rollingUpdate", "partition"), 0),
        ("daemonsets", ("spec", "updateStrategy", "rollingUpdate", "maxUnavailable"), 1),
    ],
)
def test_a_workload_gets_the_defaults_of_its_kind(
    api: Api, plural: str, path: tuple[str, ...], value: object
) -> None:
    found = api.ok("POST", f"{APPS}/{plural}", workload("web"))
    for part in path:
        found = found[part]
    assert found == value


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"selector": {"matchLabels": {"app": "other"}}}, "spec.template.metadata.labels"),
        ({"selector": {}}, "spec.selector"),
        ({"replicas": -1}, "spec.replicas"),
        ({"strategy": {"type": "BlueGreen"}}, "spec.strategy.type"),
        (
            {"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}},
            "spec.strategy.rollingUpdate.maxUnavailable",
        ),
        (
            {"strategy": {"rollingUpdate": {"maxSurge": "many"}}},
            "spec.strategy.rollingUpdate.maxSurge",
        ),
        (
            {"template": {"metadata": TEMPLATE["metadata"], "spec": {"containers": []}}},
            "spec.template.spec.containers",
        ),
    ],
)
def test_an_invalid_deployment_is_refused_with_its_field(
    api: Api, spec: dict[str, Any], field: str
) -> None:
    response = api("POST", f"{APPS}/deployments", workload("web", **spec))
    assert response.status == 422
    assert field in [cause["field"] for cause in response.body["details"]["causes"]]


def test_a_selector_stays_as_it_is(api: Api) -> None:
    api.ok("POST", f"{APPS}/deployments", workload("web"))
    changes = {"spec": {"selector": {"matchLabels": {"app": "web", "tier": "front"}}}}
    response = api("PATCH", f"{APPS}/deployments/web", changes, MERGE)
    assert response.status == 422
    assert "immutable" in response.body["message"] or "labels" in response.body["message"]


def test_the_generation_counts_changes_of_the_spec_alone(api: Api) -> None:
    path = f"{APPS}/deployments/web"
    api.ok("POST", f"{APPS}/deployments", workload("web"))
    labelled = api.ok("PATCH", path, {"metadata": {"labels": {"a": "b"}}}, MERGE)
    image = [{"name": "web", "image": "web:2"}]
    changed = api.ok(
        "PATCH", path, {"spec": {"template": {"spec": {"containers": image}}}}, STRATEGIC
    )
    assert (labelled["metadata"]["generation"], changed["metadata"]["generation"]) == (1, 2)


@pytest.mark.parametrize(
    ("method", "body", "content_type"),
    [
        ("PATCH", {"spec": {"replicas": 4}}, MERGE),
        ("PATCH", [{"op": "replace", "path": "/spec/replicas", "value": 4}], JSON_PATCH),
        ("PUT", {"metadata": {"name": "web"}, "spec": {"replicas": 4}}, ""),
    ],
)
def test_scale_reads_and_sets_the_replicas(
    api: Api, method: str, body: Any, content_type: str
) -> None:
    api.ok("POST", f"{APPS}/deployments", workload("web", replicas=2))
    scale = api.ok("GET", f"{APPS}/deployments/web/scale")
    assert (scale["kind"], scale["spec"], scale["status"]["selector"]) == (
        "Scale",
        {"replicas": 2},
        "app=web",
    )
    assert api.ok(method, f"{APPS}/deployments/web/scale", body, content_type)["spec"] == {
        "replicas": 4
    }
    assert api.ok("GET", f"{APPS}/deployments/web")["spec"]["replicas"] == 4


def test_a_scale_without_a_number_is_refused(api: Api) -> None:
    api.ok("POST", f"{APPS}/deployments", workload("web"))
    body = {"spec": {"replicas": "many"}}
    assert api("PUT", f"{APPS}/deployments/web/scale", body).status == 400


def test_a_secret_encodes_its_plain_text(api: Api) -> None:
    body = {"metadata": {"name": "s"}, "stringData": {"password": "open"}}
    stored = api.ok("POST", f"{CORE}/secrets", body)
    assert (stored["type"], "stringData" in stored) == ("Opaque", False)
    assert base64.b64decode(stored["data"]["password"]) == b"open"


def test_an_immutable_config_map_stays_as_it_is(api: Api) -> None:
    body = {"metadata": {"name": "c"}, "data": {"a": "1"}, "immutable": True}
    api.ok("POST", f"{CORE}/configmaps", body)
    assert api("PATCH", f"{CORE}/configmaps/c", {"data": {"a": "2"}}, MERGE).status == 422


def test_endpoints_carry_a_warning(api: Api) -> None:
    response = api("POST", f"{CORE}/endpoints", {"metadata": {"name": "web"}})
    assert response.status == 201
    assert "EndpointSlice" in response.headers["Warning"]


def test_an_orphaned_object_loses_its_owner(api: Api) -> None:
    owner = api.ok("POST", f"{APPS}/deployments", workload("web"))
    reference = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": "web",
        "uid": owner["metadata"]["uid"],
    }
    owned = workload("web-1")
    owned["metadata"]["ownerReferences"] = [reference]
    api.ok("POST", f"{APPS}/replicasets", owned)
    api.ok("DELETE", f"{APPS}/deployments/web", {"propagationPolicy": "Orphan"})
    assert not api.ok("GET", f"{APPS}/replicasets/web-1")["metadata"].get("ownerReferences")


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: f"{kind.plural}.{kind.group}")
def test_a_refused_kind_says_why_in_one_line(api: Api, kind: Any) -> None:
    root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
    path = (
        f"{root}/namespaces/default/{kind.plural}" if kind.namespaced else f"{root}/{kind.plural}"
    )
    listed = api.ok("GET", root)["resources"]
    assert kind.plural in [each["name"] for each in listed]
    for method, where, status in (("POST", path, 405), ("GET", f"{path}/x", 404)):
        response = api(method, where, {} if method == "POST" else None)
        assert response.status == status
        message = response.body["message"]
        assert kind.plural in message
        assert kind.why in message
        assert "\n" not in message


def test_what_the_lab_ignores_of_a_pod_is_a_warning(api: Api) -> None:
    spec = {
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "emptyDir": {}}],
    }
    response = api("POST", f"{CORE}/pods", {"metadata": {"name": "p"}, "spec": spec})
    assert response.status == 201
    assert "no volumes" in response.headers["Warning"]


def test_server_side_apply_is_refused_in_one_line(api: Api) -> None:
    response = api("PATCH", f"{CORE}/configmaps/c", {}, "application/apply-patch+yaml")
    assert response.status == 400
    assert "without --server-side" in response.body["message"]
