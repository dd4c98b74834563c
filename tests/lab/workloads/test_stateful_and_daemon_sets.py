"""StatefulSets and DaemonSets in a model: order, ordinals, nodes, revisions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pyproxy_lab.workloads import daemonset, objects, statefulset
from pyproxy_lab.workloads.plan import Plan

from tests.lab.workloads.cluster_model import NOW, Json, Model, workload

NODES: dict[str, Json] = {
    name: {"metadata": {"name": name, "labels": {"disk": disk}}, "spec": {}}
    for name, disk in (("a", "ssd"), ("b", "hdd"))
}


def stateful(**spec: Any) -> Model:
    model = Model()
    model.add("statefulsets", workload("db", "db:1", serviceName="db", **spec))
    return model


def daemon(**spec: Any) -> Model:
    model = Model()
    model.add("daemonsets", workload("agent", "agent:1", **spec))
    return model


def plan(model: Model) -> Plan:
    if found := model.all("statefulsets"):
        return statefulset.plan(found[0], model.all("pods"), model.all("controllerrevisions"), NOW)
    revisions = model.all("controllerrevisions")
    return daemonset.plan(model.all("daemonsets")[0], model.all("pods"), NODES, revisions, NOW)


def reconcile(model: Model) -> None:
    for _ in range(50):
        if not model.apply(plan(model)):
            return
    raise AssertionError("the plans do not end")


def settle(model: Model) -> list[list[str]]:
    """Let one pod after the other get ready; return the names of all pods at each step."""
    steps = []
    for _ in range(50):
        reconcile(model)
        steps.append(sorted(model.objects.get("pods", {})))
        waiting = [pod for pod in model.all("pods") if not objects.is_ready(pod)]
        if not waiting:
            return steps
        model.set_ready(waiting[0]["metadata"]["name"])
    raise AssertionError("the rollout does not end")


def set_image(model: Model, plural: str, image: str) -> None:
    name, found = next(iter(model.objects[plural].items()))
    changed = copy.deepcopy(found)
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = image
    model.objects[plural][name] = changed


def images(model: Model) -> dict[str, str]:
    return {
        name: pod["spec"]["containers"][0]["image"] for name, pod in model.objects["pods"].items()
    }


def test_pods_are_made_in_order() -> None:
    assert settle(stateful(replicas=3)) == [
        ["db-0"],
        ["db-0", "db-1"],
        ["db-0", "db-1", "db-2"],
        ["db-0", "db-1", "db-2"],
    ]


def test_parallel_pods_are_made_at_once() -> None:
    steps = settle(stateful(replicas=3, podManagementPolicy="Parallel"))
    assert steps[0] == ["db-0", "db-1", "db-2"]


def test_a_pod_has_its_name_and_its_headless_service() -> None:
    model = stateful(replicas=1)
    settle(model)
    pod = model.objects["pods"]["db-0"]
    assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == ("db-0", "db")
    assert pod["metadata"]["labels"][statefulset.INDEX] == "0"


def test_the_highest_ordinals_go_first() -> None:
    model = stateful(replicas=3)
    settle(model)
    model.objects["statefulsets"]["db"]["spec"]["replicas"] = 1
    first = [write for write in plan(model).writes if write.method == "DELETE"]
    assert [write.path.rpartition("/")[2] for write in first] == ["db-2"]
    settle(model)
    assert list(model.objects["pods"]) == ["db-0"]


def test_a_rolling_update_goes_from_the_last_to_the_first() -> None:
    model = stateful(replicas=3)
    settle(model)
    set_image(model, "statefulsets", "db:2")
    reconcile(model)
    assert images(model) == {"db-0": "db:1", "db-1": "db:1", "db-2": "db:2"}
    settle(model)
    assert set(images(model).values()) == {"db:2"}
    status = model.objects["statefulsets"]["db"]["status"]
    assert status["currentRevision"] == status["updateRevision"]


def test_a_partition_keeps_the_lower_ordinals() -> None:
    model = stateful(replicas=3, updateStrategy={"rollingUpdate": {"partition": 2}})
    settle(model)
    set_image(model, "statefulsets", "db:2")
    settle(model)
    assert images(model) == {"db-0": "db:1", "db-1": "db:1", "db-2": "db:2"}
    del model.objects["pods"]["db-0"]
    settle(model)
    assert images(model)["db-0"] == "db:1"


@pytest.mark.parametrize(
    ("spec", "nodes"), [({}, ["a", "b"]), ({"nodeSelector": {"disk": "ssd"}}, ["a"])]
)
def test_a_daemon_set_has_one_pod_on_each_node_that_it_selects(
    spec: Json, nodes: list[str]
) -> None:
    model = daemon()
    model.objects["daemonsets"]["agent"]["spec"]["template"]["spec"] |= spec
    settle(model)
    assert sorted(pod["spec"]["nodeName"] for pod in model.all("pods")) == nodes
    status = model.objects["daemonsets"]["agent"]["status"]
    assert (status["desiredNumberScheduled"], status["numberReady"]) == (len(nodes), len(nodes))


def test_a_daemon_set_replaces_one_pod_at_a_time() -> None:
    model = daemon()
    settle(model)
    set_image(model, "daemonsets", "agent:2")
    reconcile(model)
    assert sorted(images(model).values()) == ["agent:1", "agent:2"]
    settle(model)
    assert set(images(model).values()) == {"agent:2"}


def test_an_undo_gives_the_old_revision_a_new_number() -> None:
    model = daemon()
    settle(model)
    for image in ("agent:2", "agent:1"):
        set_image(model, "daemonsets", image)
        settle(model)
    assert sorted(each["revision"] for each in model.all("controllerrevisions")) == [2, 3]
