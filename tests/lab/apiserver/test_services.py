"""Defaults, allocation and validation of Services."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings

from tests.lab.api import MERGE, SERVICES, Api, Json, service

PORT = {"port": 80}


def create(api: Api, name: str = "web", **spec: Json) -> Json:
    return api.ok("POST", SERVICES, service(name, **spec))


def put(api: Api, name: str = "web", **spec: Json) -> Json:
    return api.ok("PUT", f"{SERVICES}/{name}", service(name, **spec))


def test_an_update_keeps_what_the_client_leaves_out(api: Api) -> None:
    before = create(api, type="LoadBalancer", externalTrafficPolicy="Local")["spec"]
    after = put(api, type="LoadBalancer", externalTrafficPolicy="Local", selector={"a": "b"})
    assert after["spec"] == {**before, "selector": {"a": "b"}}


def test_a_node_port_stays_with_its_port_and_protocol(api: Api) -> None:
    ports = [{"name": "a", "port": 80}, {"name": "b", "port": 81, "nodePort": 30081}]
    first, second = create(api, type="NodePort", ports=ports)["spec"]["ports"]
    new = [{"name": "c", "port": 82}, {"name": "b", "port": 81}, {"name": "a", "port": 80}]
    after = put(api, type="NodePort", ports=new)["spec"]["ports"]
    assert after[1]["nodePort"] == second["nodePort"] == 30081
    assert after[2]["nodePort"] == first["nodePort"]
    assert after[0]["nodePort"] not in {first["nodePort"], 30081}


def test_one_number_serves_a_port_in_two_protocols(api: Api) -> None:
    ports = [{"name": "u", "port": 53, "protocol": "UDP"}, {"name": "t", "port": 53}]
    one, two = create(api, type="NodePort", ports=ports)["spec"]["ports"]
    assert one["nodePort"] == two["nodePort"]


def test_what_a_service_lets_go_another_can_have(api: Api) -> None:
    spec: Json = {
        "type": "NodePort",
        "clusterIP": "10.96.7.7",
        "ports": [{**PORT, "nodePort": 30777}],
    }
    create(api, **spec)
    taken = api("POST", SERVICES, service("other", **spec))
    assert taken.status == 422
    assert taken.body["details"]["causes"][0]["message"].endswith(
        "failed to allocate IP 10.96.7.7: provided IP is already allocated"
    )
    put(api, type="ClusterIP")
    create(api, "ports", type="NodePort", ports=[{**PORT, "nodePort": 30777}])
    api.ok("DELETE", f"{SERVICES}/web")
    create(api, "addresses", clusterIP="10.96.7.7")


def test_a_refused_service_takes_nothing(api: Api) -> None:
    create(api, "a", type="NodePort", ports=[{**PORT, "nodePort": 30001}])
    ports = [{"name": "x", **PORT}, {"name": "y", "port": 81, "nodePort": 30001}]
    spec: Json = {"type": "NodePort", "clusterIP": "10.96.7.8", "ports": ports}
    assert api("POST", SERVICES, service("b", **spec)).status == 422
    create(api, "c", clusterIP="10.96.7.8")


def test_the_clusters_own_service_comes_back(api: Api) -> None:
    path = f"{SERVICES}/kubernetes"
    before = api.ok("GET", path)
    api.ok("DELETE", path)
    after = api.ok("GET", path)
    assert after["spec"] == before["spec"]
    assert after["metadata"]["uid"] != before["metadata"]["uid"]


def test_the_range_can_be_used_up() -> None:
    networks = (ipaddress.IPv4Network("10.9.0.0/28"),)
    with ApiServer.running(Settings(cluster_ips=networks)) as server:
        api = Api(server.url)
        given = {create(api, f"s{n}")["spec"]["clusterIP"] for n in range(13)}
        # 16 addresses, without the network's own, the broadcast, and default/kubernetes.
        assert given == {f"10.9.0.{n}" for n in range(2, 15)}
        assert api("POST", SERVICES, service("more")).status == 500
        dual = api("POST", SERVICES, service("dual", ipFamilyPolicy="RequireDualStack"))
        assert dual.status == 422
        prefer = service("prefer", ipFamilyPolicy="PreferDualStack", clusterIP="None", selector={})
        assert api("POST", SERVICES, prefer).status == 201


@pytest.mark.parametrize(
    ("spec", "families", "policy"),
    [
        ({}, ["IPv4"], "SingleStack"),
        ({"ipFamilies": ["IPv6"]}, ["IPv6"], "SingleStack"),
        ({"ipFamilies": ["IPv6", "IPv4"]}, ["IPv6", "IPv4"], "RequireDualStack"),
        ({"ipFamilyPolicy": "PreferDualStack"}, ["IPv4", "IPv6"], "PreferDualStack"),
        (
            {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]},
            ["IPv6", "IPv4"],
            "RequireDualStack",
        ),
        ({"clusterIP": "fd00:10:96::7"}, ["IPv6"], "SingleStack"),
        ({"clusterIPs": ["fd00:10:96::8", "10.96.0.8"]}, ["IPv6", "IPv4"], "RequireDualStack"),
        ({"clusterIP": "None", "selector": {"a": "b"}}, ["IPv4"], "SingleStack"),
    ],
)
def test_families(api: Api, spec: Json, families: list[str], policy: str) -> None:
    made = create(api, **spec)["spec"]
    assert (made["ipFamilies"], made["ipFamilyPolicy"]) == (families, policy)
    if made["clusterIP"] != "None":
        found = [f"IPv{ipaddress.ip_address(a).version}" for a in made["clusterIPs"]]
        assert found == families
        assert made["clusterIP"] == made["clusterIPs"][0]


def test_a_second_family_can_be_added_and_removed(api: Api) -> None:
    single = create(api)["spec"]
    dual = put(api, ipFamilyPolicy="PreferDualStack")["spec"]
    assert dual["clusterIPs"][0] == single["clusterIP"]
    assert len(dual["clusterIPs"]) == len(dual["ipFamilies"]) == 2
    again = put(api, ipFamilyPolicy="SingleStack")["spec"]
    assert again == single
    create(api, "other", clusterIP=dual["clusterIPs"][1])


def test_a_type_can_change_and_change_back(api: Api) -> None:
    first = create(api, type="NodePort")["spec"]
    change: Json = {"spec": {"type": "ClusterIP"}}
    plain = api.ok("PATCH", f"{SERVICES}/web", change, MERGE)["spec"]
    assert "nodePort" not in plain["ports"][0]
    assert "externalTrafficPolicy" not in plain
    assert plain["clusterIP"] == first["clusterIP"]
    change = {"spec": {"type": "ExternalName", "externalName": "a.example"}}
    named = api.ok("PATCH", f"{SERVICES}/web", change, MERGE)["spec"]
    assert not {"clusterIP", "clusterIPs", "ipFamilies"} & set(named)
    change = {"spec": {"type": "ClusterIP", "externalName": None}}
    assert "clusterIP" in api.ok("PATCH", f"{SERVICES}/web", change, MERGE)["spec"]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"ports": []}, "spec.ports"),
        ({"ports": [{"port": 0}]}, "spec.ports[0].port"),
        ({"ports": [{"port": 80, "targetPort": "No_Name"}]}, "spec.ports[0].targetPort"),
        ({"ports": [{"port": 80, "targetPort": 70000}]}, "spec.ports[0].targetPort"),
        ({"ports": [{"port": 80, "protocol": "ICMP"}]}, "spec.ports[0].protocol"),
        ({"ports": [{"port": 80, "name": "Up"}]}, "spec.ports[0].name"),
        ({"ports": [{"port": 80}, {"port": 81}]}, "spec.ports[0].name"),
        ({"ports": [{"port": 1, "name": "a"}, {"port": 2, "name": "a"}]}, "spec.ports[1].name"),
        ({"ports": [{"port": 1, "name": "a"}, {"port": 1, "name": "b"}]}, "spec.ports[1]"),
        ({"ports": [{"port": 80, "nodePort": 30000}]}, "spec.ports[0].nodePort"),
        ({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}, "spec.ports[0].nodePort"),
        ({"type": "Best"}, "spec.type"),
        ({"type": "ExternalName"}, "spec.externalName"),
        ({"type": "NodePort", "clusterIP": "None"}, "spec.clusterIPs[0]"),
        ({"clusterIP": "1.2.3"}, "spec.clusterIPs[0]"),
        ({"clusterIP": "192.0.2.1"}, "spec.clusterIPs"),
        ({"clusterIP": "10.96.0.0"}, "spec.clusterIPs"),
        ({"clusterIP": "10.96.0.1"}, "spec.clusterIPs"),
        ({"clusterIP": "10.96.0.9", "ipFamilies": ["IPv6"]}, "spec.clusterIPs[0]"),
        ({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.8"]}, "spec.clusterIPs"),
        ({"ipFamilies": ["IPv5"]}, "spec.ipFamilies[0]"),
        ({"ipFamilies": ["IPv4", "IPv4"]}, "spec.ipFamilies[1]"),
        ({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "SingleStack"}, "spec.ipFamilyPolicy"),
        ({"ipFamilyPolicy": "Any"}, "spec.ipFamilyPolicy"),
        ({"externalIPs": ["example.com"]}, "spec.externalIPs[0]"),
        ({"externalIPs": ["127.0.0.1"]}, "spec.externalIPs[0]"),
        ({"externalIPs": ["192.0.2.1", "169.254.1.1"]}, "spec.externalIPs[1]"),
        ({"loadBalancerSourceRanges": ["192.0.2.0/24"]}, "spec.loadBalancerSourceRanges"),
        (
            {"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0"]},
            "spec.loadBalancerSourceRanges[0]",
        ),
        ({"sessionAffinity": "Cookie"}, "spec.sessionAffinity"),
        (
            {
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}},
            },
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        ),
        ({"internalTrafficPolicy": "Near"}, "spec.internalTrafficPolicy"),
        ({"externalTrafficPolicy": "Local"}, "spec.externalTrafficPolicy"),
        ({"type": "NodePort", "externalTrafficPolicy": "Near"}, "spec.externalTrafficPolicy"),
        ({"healthCheckNodePort": 30000}, "spec.healthCheckNodePort"),
        ({"selector": {"a b": "c"}}, "spec.selector"),
        ({"selector": {"a": "-"}}, "spec.selector"),
        ({"trafficDistribution": "Nowhere"}, "spec.trafficDistribution"),
    ],
)
def test_a_bad_service_is_refused(api: Api, spec: Json, field: str) -> None:
    response = api("POST", SERVICES, service("web", **spec))
    assert response.status == 422, response.raw
    assert field in [cause["field"] for cause in response.body["details"]["causes"]]
    assert response.body["reason"] == "Invalid"
    assert api("GET", f"{SERVICES}/web").status == 404


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        ({}, {"clusterIP": "10.96.0.77"}, "spec.clusterIPs[0]"),
        ({}, {"clusterIP": "None"}, "spec.clusterIPs[0]"),
        ({}, {"ipFamilies": ["IPv6"]}, "spec.clusterIPs[0]"),
        (
            {"type": "LoadBalancer", "externalTrafficPolicy": "Local"},
            {
                "type": "LoadBalancer",
                "externalTrafficPolicy": "Local",
                "healthCheckNodePort": 31999,
            },
            "spec.healthCheckNodePort",
        ),
    ],
)
def test_what_is_fixed_stays(api: Api, before: Json, after: Json, field: str) -> None:
    made = create(api, **before)
    response = api("PUT", f"{SERVICES}/web", service("web", **after))
    assert response.status == 422, response.raw
    assert field in [cause["field"] for cause in response.body["details"]["causes"]]
    assert api.ok("GET", f"{SERVICES}/web") == made


def test_status_and_spec_are_written_apart(api: Api) -> None:
    create(api, type="LoadBalancer")
    body: dict[str, Any] = service("web", type="LoadBalancer", selector={"a": "b"})
    body["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}
    assert api.ok("PUT", f"{SERVICES}/web", body)["status"] == {"loadBalancer": {}}
    body["spec"]["selector"] = {"c": "d"}
    after = api.ok("PUT", f"{SERVICES}/web/status", body)
    assert after["status"]["loadBalancer"]["ingress"] == [{"ip": "192.0.2.1", "ipMode": "VIP"}]
    assert after["spec"]["selector"] == {"a": "b"}
    bad = {"status": {"loadBalancer": {"ingress": [{"ip": "300.1.1.1"}]}}}
    assert api("PATCH", f"{SERVICES}/web/status", bad, MERGE).status == 422


def test_what_is_no_load_balancer_any_more_loses_its_status(api: Api) -> None:
    create(api, type="LoadBalancer")
    status = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}}
    api.ok("PATCH", f"{SERVICES}/web/status", status, MERGE)
    assert put(api, type="NodePort")["status"] == {"loadBalancer": {}}
    assert api("PATCH", f"{SERVICES}/web/status", status, MERGE).status == 422
