"""Deployments and ReplicaSets: rollouts in a model, whatever the order in which pods get ready."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproxy_lab.workloads import deployment, objects, replicaset

from tests.lab.workloads.cluster_model import NOW, Json, Model, workload

_MOST_STEPS = 400


def reconcile(model: Model) -> None:
    """Carry out the plans until nothing is left to write."""
    for _ in range(_MOST_STEPS):
        busy = False
        for found in model.all("deployments"):
            busy |= model.apply(deployment.plan(found, model.all("replicasets"), NOW))
        for found in model.all("replicasets"):
            current = model.objects["replicasets"].get(found["metadata"]["name"])
            if current is not None:
                current.setdefault("kind", "ReplicaSet")
                current.setdefault("apiVersion", "apps/v1")
                busy |= model.apply(replicaset.plan(current, model.all("pods"), NOW))
        if not busy:
            return
    raise AssertionError("the plans do not end")


def settle(model: Model) -> None:
    """Let all pods get ready, and all plans end."""
    for _ in range(_MOST_STEPS):
        reconcile(model)
        waiting = [pod for pod in model.all("pods") if not objects.is_ready(pod)]
        if not waiting:
            return
        for pod in waiting:
            model.set_ready(pod["metadata"]["name"])
    raise AssertionError("the rollout does not end")


def set_image(model: Model, image: str) -> None:
    found = copy.deepcopy(model.objects["deployments"]["web"])
    found["spec"]["template"]["spec"]["containers"][0]["image"] = image
    found["metadata"]["generation"] += 1
    model.objects["deployments"]["web"] = found


def images(model: Model) -> list[str]:
    return sorted(pod["spec"]["containers"][0]["image"] for pod in model.all("pods"))


def start(**spec: Any) -> Model:
    model = Model()
    model.add("deployments", workload("web", **spec))
    settle(model)
    return model


def revisions(model: Model) -> dict[str, str]:
    return {
        each["spec"]["template"]["spec"]["containers"][0]["image"]: each["metadata"]["annotations"][
            deployment.REVISION
        ]
        for each in model.all("replicasets")
    }


def test_a_deployment_makes_its_pods_once() -> None:
    model = start(replicas=3)
    assert images(model) == ["web:1"] * 3
    status = model.objects["deployments"]["web"]["status"]
    assert (status["updatedReplicas"], status["availableReplicas"]) == (3, 3)
    reasons = {each["type"]: each["reason"] for each in status["conditions"]}
    assert reasons == {
        "Available": "MinimumReplicasAvailable",
        "Progressing": "NewReplicaSetAvailable",
    }


@pytest.mark.parametrize(
    ("strategy", "surge", "unavailable"),
    [
        ({}, 1, 1),
        ({"maxSurge": 0, "maxUnavailable": 1}, 0, 1),
        ({"maxSurge": 2, "maxUnavailable": 0}, 2, 0),
        ({"maxSurge": "50%", "maxUnavailable": "50%"}, 2, 2),
        ({"maxSurge": "1%", "maxUnavailable": "1%"}, 1, 0),
        ({"maxSurge": "0%", "maxUnavailable": "1%"}, 0, 1),
    ],
)
def test_bounds(strategy: Json, surge: int, unavailable: int) -> None:
    model = start(replicas=4, strategy={"type": "RollingUpdate", "rollingUpdate": strategy})
    assert deployment.bounds(model.objects["deployments"]["web"]) == (surge, unavailable)


@given(
    replicas=st.integers(1, 6),
    surge=st.integers(0, 3),
    unavailable=st.integers(0, 3),
    choices=st.lists(st.integers(0, 1000), max_size=30),
)
@settings(max_examples=40, deadline=None)
def test_a_rolling_update_keeps_its_bounds(
    replicas: int, surge: int, unavailable: int, choices: list[int]
) -> None:
    if not surge and not unavailable:
        surge = 1
    rolling = {"maxSurge": surge, "maxUnavailable": unavailable}
    model = start(replicas=replicas, strategy={"rollingUpdate": rolling})
    set_image(model, "web:2")
    for choice in [*choices, *[0] * (4 * replicas)]:
        reconcile(model)
        ready = [pod for pod in model.all("pods") if objects.is_ready(pod)]
        assert len(ready) >= replicas - unavailable
        assert len(model.all("pods")) <= replicas + surge
        waiting = [pod for pod in model.all("pods") if not objects.is_ready(pod)]
        if waiting:
            model.set_ready(waiting[choice % len(waiting)]["metadata"]["name"])
    reconcile(model)
    assert images(model) == ["web:2"] * replicas


def test_a_broken_version_leaves_the_old_pods() -> None:
    model = start(replicas=4)
    set_image(model, "web:broken")
    reconcile(model)
    assert images(model) == ["web:1"] * 3 + ["web:broken"] * 2
    set_image(model, "web:1")
    settle(model)
    assert images(model) == ["web:1"] * 4


def test_an_undo_gives_the_old_replica_set_a_new_revision() -> None:
    model = start(replicas=2)
    set_image(model, "web:2")
    settle(model)
    assert revisions(model) == {"web:1": "1", "web:2": "2"}
    set_image(model, "web:1")
    settle(model)
    assert revisions(model) == {"web:1": "3", "web:2": "2"}
    assert len(model.all("replicasets")) == 2


def test_recreate_ends_all_pods_first() -> None:
    model = start(replicas=2, strategy={"type": "Recreate"})
    set_image(model, "web:2")
    plan = deployment.plan(model.all("deployments")[0], model.all("replicasets"), NOW)
    model.apply(plan)
    model.apply(deployment.plan(model.all("deployments")[0], model.all("replicasets"), NOW))
    assert {each["spec"]["replicas"] for each in model.all("replicasets")} == {0}
    settle(model)
    assert images(model) == ["web:2"] * 2


def test_a_paused_deployment_does_not_roll_out_but_scales() -> None:
    model = start(replicas=2)
    set_image(model, "web:2")
    model.objects["deployments"]["web"]["spec"] |= {"paused": True, "replicas": 3}
    settle(model)
    assert images(model) == ["web:1"] * 3


def test_old_replica_sets_beyond_the_limit_are_deleted() -> None:
    model = start(replicas=1, revisionHistoryLimit=2)
    for number in range(2, 7):
        set_image(model, f"web:{number}")
        settle(model)
    assert sorted(revisions(model)) == ["web:4", "web:5", "web:6"]


def test_a_rollout_that_stands_still_has_failed_at_its_deadline() -> None:
    model = start(replicas=1)
    set_image(model, "web:broken")
    reconcile(model)
    found = model.objects["deployments"]["web"]
    late = NOW.replace(hour=1)
    model.apply(deployment.plan(found, model.all("replicasets"), late))
    conditions = model.objects["deployments"]["web"]["status"]["conditions"]
    progressing = next(each for each in conditions if each["type"] == "Progressing")
    assert (progressing["status"], progressing["reason"]) == ("False", "ProgressDeadlineExceeded")


def test_a_pod_whose_label_changes_is_released_and_replaced() -> None:
    model = start(replicas=2)
    taken = model.all("pods")[0]
    taken["metadata"]["labels"]["app"] = "debug"
    settle(model)
    assert len(model.all("pods")) == 3
    assert "ownerReferences" not in model.objects["pods"][taken["metadata"]["name"]]["metadata"]


def test_pods_that_serve_nothing_are_deleted_first() -> None:
    model = start(replicas=4)
    unready = model.all("pods")[2]["metadata"]["name"]
    model.set_ready(unready, ready=False)
    model.objects["deployments"]["web"]["spec"]["replicas"] = 3
    settle(model)
    assert unready not in model.objects["pods"]
