"""The parts of the kubelet and of the small controllers that do no I/O, as tables."""

from __future__ import annotations

from typing import Any

import pytest
from pyproxy_lab.workloads import (
    endpoints,
    images,
    load_balancers,
    objects,
    pod_status,
    probes,
    scheduler,
    service_environment,
)
from pyproxy_lab.workloads.cache import Cache
from pyproxy_lab.workloads.images import Role
from pyproxy_lab.workloads.pod_status import ContainerState
from pyproxy_lab.workloads.probes import Outcome, Probe
from pyproxy_lab.workloads.work_queue import Key

Json = dict[str, Any]


def find(word: str) -> str | None:
    return word if word in {"sh", "sleep", "/bin/sh", "curl"} else None


@pytest.mark.parametrize(
    ("container", "role"),
    [
        ({"image": "nginx"}, Role(ports=(80,))),
        ({"image": "unknown"}, Role(ports=(80, 8080))),
        ({"image": "a/serve_hostname:1"}, Role(ports=(9376,))),
        (
            {"image": "x", "ports": [{"containerPort": 7}, {"containerPort": 7}]},
            Role(ports=(7,), declared=True),
        ),
        ({"image": "busybox", "args": ["sleep", "9"]}, Role(("sleep", "9"))),
        ({"image": "b", "command": ["/bin/sh"], "args": ["-c", "x"]}, Role(("/bin/sh", "-c", "x"))),
        (
            {"image": "agnhost", "command": ["/agnhost", "netexec", "--http-port=81"]},
            Role(ports=(81,)),
        ),
        ({"image": "x", "args": ["-port", "82"]}, Role(ports=(82,))),
        ({"image": "curlimages/curl", "args": ["http://web"]}, Role(("curl", "http://web"))),
        ({"image": "busybox", "stdin": True}, Role(("sh",))),
    ],
)
def test_a_container_runs_its_command_or_is_a_server(container: Json, role: Role) -> None:
    assert images.role(container, find) == role


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("nginx", "latest"),
        ("nginx:1.25", "1.25"),
        ("host:5000/team/web", "latest"),
        ("host:5000/team/web:2@sha256:ab", "2"),
    ],
)
def test_the_version_is_the_tag(image: str, version: str) -> None:
    assert images.version(image) == version


def test_a_probe_changes_after_as_many_results_in_a_row_as_it_says() -> None:
    outcome, probe = Outcome(True), Probe(failures=3, successes=2)
    seen = []
    for succeeded in (False, False, True, False, False, False, True, True):
        outcome.add(succeeded, probe)
        seen.append(outcome.passing)
    assert seen == [True, True, True, True, True, False, False, True]


@pytest.mark.parametrize(
    ("found", "probe"),
    [
        ({"httpGet": {"port": 80}}, Probe(period=10, port=80, path="/")),
        ({"tcpSocket": {"port": "web"}, "periodSeconds": 2}, Probe(period=2, port=81)),
        ({"exec": {"command": ["true"]}}, Probe(period=10, command=("true",))),
    ],
)
def test_probes_as_manifests_have_them(found: Json, probe: Probe) -> None:
    container = {"readinessProbe": found, "ports": [{"name": "web", "containerPort": 81}]}
    assert probes.parse(container, "readinessProbe") == probe


@pytest.mark.parametrize(
    ("codes", "restart", "phase"),
    [
        ([None], "Never", "Running"),
        ([0, None], "Never", "Running"),
        ([0], "Never", "Succeeded"),
        ([0, 1], "Never", "Failed"),
        ([1], "OnFailure", "Running"),
        ([0], "OnFailure", "Succeeded"),
        ([0], "Always", "Running"),
    ],
)
def test_the_phase_of_a_pod(codes: list[int | None], restart: str, phase: str) -> None:
    states = [ContainerState(str(n), "i", True, exit_code=code) for n, code in enumerate(codes)]
    assert pod_status.phase_of(states, restart) == phase


def node(name: str, labels: Json | None = None, **spec: Any) -> Json:
    return {"metadata": {"name": name, "labels": labels or {}}, "spec": spec}


def pod(name: str, where: str = "", **spec: Any) -> Json:
    return {
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
        "spec": {**({"nodeName": where} if where else {}), **spec},
        "status": {},
    }


_TAINT = {"key": "dedicated", "value": "db", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("nodes", "spec", "chosen"),
    [
        ([node("a"), node("b")], {}, "b"),
        ([node("a", {"disk": "ssd"}), node("b")], {"nodeSelector": {"disk": "ssd"}}, "a"),
        ([node("a"), node("b", unschedulable=True)], {}, "a"),
        ([node("a"), node("b", taints=[_TAINT])], {}, "a"),
        ([node("a"), node("b", taints=[_TAINT])], {"tolerations": [{"operator": "Exists"}]}, "b"),
        ([node("a", taints=[_TAINT])], {}, ""),
        ([], {}, ""),
    ],
)
def test_the_scheduler_spreads_over_the_nodes_that_fit(
    nodes: list[Json], spec: Json, chosen: str
) -> None:
    by_name = {each["metadata"]["name"]: each for each in nodes}
    name, why = scheduler.choose(pod("new", **spec), by_name, [pod("old", "a")])
    assert name == chosen
    assert bool(why) is not bool(name)


def service(kind: str, ip: str = "", **spec: Any) -> Json:
    ingress = {"ingress": [{"ip": ip}]} if ip else {}
    return {
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"type": kind, "selector": {"app": "web"}, **spec},
        "status": {"loadBalancer": ingress},
    }


@pytest.mark.parametrize(
    ("found", "granted"),
    [
        (service("LoadBalancer"), [{"ip": "192.0.2.2"}]),
        (service("LoadBalancer", loadBalancerIP="192.0.2.9"), [{"ip": "192.0.2.9"}]),
        (service("ClusterIP", "192.0.2.5"), None),
    ],
)
def test_a_load_balancer_gets_a_free_address(found: Json, granted: list[Json] | None) -> None:
    taken = service("LoadBalancer", "192.0.2.1")
    (write,) = load_balancers.plan(found, [taken, found]).writes
    assert write.body == {"status": {"loadBalancer": {"ingress": granted}}}


@pytest.mark.parametrize(
    "found",
    [
        service("LoadBalancer", "192.0.2.3"),
        service("LoadBalancer", loadBalancerClass="example.com/other"),
        service("ClusterIP"),
    ],
)
def test_other_services_keep_what_they_have(found: Json) -> None:
    assert not load_balancers.plan(found, [found]).writes


def test_endpoints_have_ready_addresses_apart_from_others() -> None:
    made = {
        "metadata": {"name": "web-1"},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 80, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": ["10.0.0.2"], "conditions": {"ready": True}},
            {"addresses": ["10.0.0.1"], "conditions": {"ready": True}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": False}},
            {"addresses": ["10.0.0.4"], "conditions": {"ready": False, "terminating": True}},
        ],
    }
    (write,) = endpoints.plan(service("ClusterIP"), [made], None).writes
    assert write.body is not None
    assert write.body["subsets"] == [
        {
            "addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}],
            "notReadyAddresses": [{"ip": "10.0.0.3"}],
            "ports": [{"port": 80, "protocol": "TCP"}],
        }
    ]
    stored = {**write.body, "metadata": {**write.body["metadata"], "uid": "u"}}
    assert not endpoints.plan(service("ClusterIP"), [made], stored).writes
    assert [each.method for each in endpoints.plan(None, [], stored).writes] == ["DELETE"]


def owned_pod(owner: Json | None) -> Json:
    references = [] if owner is None else [objects.reference(owner)]
    return {
        "metadata": {
            "name": "web-0",
            "namespace": "default",
            "uid": "u1",
            "resourceVersion": "7",
            "labels": {"app": "web"},
            "ownerReferences": references,
        }
    }


OWNER: Json = {
    "apiVersion": "apps/v1",
    "kind": "StatefulSet",
    "metadata": {"name": "web", "namespace": "default", "uid": "u0"},
    "spec": {"selector": {"matchLabels": {"app": "web"}}},
}


@pytest.mark.parametrize(
    ("pod", "sets", "deleted"),
    [
        (owned_pod(OWNER), [], True),
        (owned_pod(OWNER), [OWNER], False),
        (owned_pod(None), [], False),
    ],
)
def test_an_object_without_its_owner_is_deleted_in_the_version_that_is_known(
    pod: Json, sets: list[Json], deleted: bool
) -> None:
    cache = Cache()
    cache.objects["pods"]["default", "web-0"] = pod
    for each in sets:
        cache.objects["statefulsets"]["default", each["metadata"]["name"]] = each
    writes = cache.plan_garbage(Key("pods", "default", "web-0")).writes
    # `--cascade=orphan` changes the object, which the server then keeps.
    wanted = {"preconditions": {"uid": "u1", "resourceVersion": "7"}}
    assert [each.body for each in writes] == ([wanted] if deleted else [])


def test_an_owner_must_exist_when_it_adopts() -> None:
    mine, writes = objects.claim(OWNER, "pods", [owned_pod(None)])
    assert len(mine) == 1
    assert [each.owner for each in writes] == [OWNER]


API = {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443}]}
WEB = {
    "clusterIP": "fd00::8",
    "ports": [{"name": "a-b", "port": 80}, {"port": 53, "protocol": "UDP"}],
}
API_VARIABLES = {
    "KUBERNETES_SERVICE_HOST": "10.96.0.1",
    "KUBERNETES_SERVICE_PORT": "443",
    "KUBERNETES_SERVICE_PORT_HTTPS": "443",
    "KUBERNETES_PORT": "tcp://10.96.0.1:443",
    "KUBERNETES_PORT_443_TCP": "tcp://10.96.0.1:443",
    "KUBERNETES_PORT_443_TCP_PROTO": "tcp",
    "KUBERNETES_PORT_443_TCP_PORT": "443",
    "KUBERNETES_PORT_443_TCP_ADDR": "10.96.0.1",
}
WEB_VARIABLES = {
    "MY_WEB_SERVICE_HOST": "fd00::8",
    "MY_WEB_SERVICE_PORT": "80",
    "MY_WEB_SERVICE_PORT_A_B": "80",
    "MY_WEB_PORT": "tcp://[fd00::8]:80",
    "MY_WEB_PORT_80_TCP": "tcp://[fd00::8]:80",
    "MY_WEB_PORT_80_TCP_PROTO": "tcp",
    "MY_WEB_PORT_80_TCP_PORT": "80",
    "MY_WEB_PORT_80_TCP_ADDR": "fd00::8",
    "MY_WEB_PORT_53_UDP": "udp://[fd00::8]:53",
    "MY_WEB_PORT_53_UDP_PROTO": "udp",
    "MY_WEB_PORT_53_UDP_PORT": "53",
    "MY_WEB_PORT_53_UDP_ADDR": "fd00::8",
}


@pytest.mark.parametrize(
    ("spec", "own", "variables"),
    [
        ({}, WEB, API_VARIABLES | WEB_VARIABLES),
        ({"enableServiceLinks": False}, WEB, API_VARIABLES),
        ({}, WEB | {"clusterIP": "None"}, API_VARIABLES),
        ({}, {"type": "ExternalName"}, API_VARIABLES),
    ],
)
def test_a_pod_has_the_variables_of_its_namespaces_services(
    spec: Json, own: Json, variables: dict[str, str]
) -> None:
    services = [
        {"metadata": {"namespace": space, "name": name}, "spec": each}
        for space, name, each in (
            ("shop", "my-web", own),
            ("default", "kubernetes", API),
            ("default", "other", WEB),
        )
    ]
    pod = {"metadata": {"namespace": "shop", "name": "p"}, "spec": spec}
    assert service_environment.variables(pod, services) == variables
