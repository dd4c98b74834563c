"""The lab's kubelet for pods of the API: they run in the network, get ready, and end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pyproxy_lab.client import ApiClient, ApiError
from pyproxy_lab.cluster import Cluster

from tests.waiting import until

pytestmark = pytest.mark.kernel

PODS = "/api/v1/namespaces/default/pods"
SERVE = "import socket, time; s = socket.create_server(('', 7000)); time.sleep(3600)"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as made, made.pod_runner():
        yield made


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> ApiClient:
    return cluster.client


def create(client: ApiClient, name: str, program: str, **spec: Any) -> None:
    container = {
        "name": "main",
        "image": "none",
        "command": [sys.executable, "-c", program],
        "readinessProbe": {"tcpSocket": {"port": 7000}},
    }
    client.create(
        PODS,
        {
            "metadata": {"name": name},
            "spec": {"nodeName": "node-b", "containers": [container], **spec},
        },
    )


def status(client: ApiClient, name: str) -> Any:
    return client.get(f"{PODS}/{name}")["status"]


def is_ready(client: ApiClient, name: str) -> bool:
    conditions = status(client, name).get("conditions", ())
    return any((each["type"], each["status"]) == ("Ready", "True") for each in conditions)


def is_gone(client: ApiClient, name: str) -> bool:
    try:
        client.get(f"{PODS}/{name}")
    except ApiError as error:
        return error.status == 404
    return False


@pytest.mark.parametrize(("host", "network"), [(False, "10.244.2."), (True, "172.30.0.12")])
def test_a_pod_runs_on_its_node_until_it_is_deleted(
    client: ApiClient, host: bool, network: str
) -> None:
    name = "on-host" if host else "in-pod"
    create(client, name, SERVE, hostNetwork=host)
    until(lambda: is_ready(client, name))
    found = status(client, name)
    assert (found["phase"], found["hostIP"]) == ("Running", "172.30.0.12")
    assert found["podIP"].startswith(network)
    client.delete(f"{PODS}/{name}?gracePeriodSeconds=30")
    until(lambda: is_gone(client, name))


def test_a_program_that_ends_is_a_pod_that_has_failed(client: ApiClient) -> None:
    create(client, "ends", "raise SystemExit(3)", restartPolicy="Never")
    until(lambda: status(client, "ends")["phase"] == "Failed")
    assert not is_ready(client, "ends")


def test_a_pod_whose_port_is_closed_is_not_ready(client: ApiClient) -> None:
    create(client, "silent", "import time; time.sleep(3600)")
    until(lambda: status(client, "silent")["phase"] == "Running")
    assert not is_ready(client, "silent")


def test_a_program_that_ends_starts_again(client: ApiClient) -> None:
    create(client, "again", "pass")
    until(lambda: status(client, "again").get("containerStatuses", [{}])[0].get("restartCount"))
    assert status(client, "again")["phase"] == "Running"


def test_pods_of_other_programs_are_left_alone(client: ApiClient) -> None:
    pod = {
        "metadata": {"name": "other", "annotations": {"kubernetes.io/config.mirror": "x"}},
        "spec": {"nodeName": "node-a", "containers": [{"name": "c", "image": "i"}]},
    }
    client.create(PODS, pod)
    create(client, "after", SERVE)
    until(lambda: is_ready(client, "after"))
    assert status(client, "other")["phase"] == "Pending"


def test_a_pod_that_cannot_be_read_is_logged_once_and_tried_again(
    cluster: Cluster, client: ApiClient, caplog: pytest.LogCaptureFixture
) -> None:
    assert cluster.server is not None
    create(client, "whole", SERVE)
    pod = client.get(f"{PODS}/whole")
    pod["metadata"] |= {"name": "broken", "uid": "of-broken"}
    pod["metadata"].pop("resourceVersion")
    pod["status"] = {"phase": "Pending"}
    broken = {**pod, "spec": {**pod["spec"], "containers": [{"name": "main"}]}}
    cluster.server.load([{"apiVersion": "v1", "kind": "Pod", **broken}])
    message = "cannot run pod default/broken: trying again"
    until(lambda: message in caplog.messages)
    until(lambda: is_ready(client, "whole"))
    # Nothing but the next try can start it, because its task goes on.
    cluster.server.load([{"apiVersion": "v1", "kind": "Pod", **pod}])
    until(lambda: is_ready(client, "broken"))
    assert caplog.messages.count(message) == 1
