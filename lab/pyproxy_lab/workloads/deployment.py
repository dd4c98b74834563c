"""Deployments: one ReplicaSet for each template, and how pods move to the newest.

Facts: the Deployment controller of Kubernetes v1.36. Nothing here does I/O. The lab does not scale
several ReplicaSets in proportion: during a rollout, a change of the replicas goes to the new one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pyproxy_lab.client import JsonObject
from pyproxy_lab.workloads import deployment_status, objects
from pyproxy_lab.workloads.plan import Happening, Plan, Write, create, delete, patch

REVISION = "deployment.kubernetes.io/revision"
HASH = "pod-template-hash"
_NOT_COPIED = {REVISION, "kubectl.kubernetes.io/last-applied-configuration"}


def plan(deployment: JsonObject, replica_sets: Iterable[JsonObject], now: datetime) -> Plan:
    """Compare a Deployment with its namespace's ReplicaSets. `now` has a time zone."""
    mine, writes = objects.claim(deployment, "replicasets", replica_sets)
    if objects.is_leaving(deployment):
        return Plan(tuple(writes))
    new = newest(deployment, mine)
    old = [each for each in mine if each is not new]
    events: list[Happening] = []
    if new is None and not deployment["spec"].get("paused"):
        made = _replica_set(deployment, old)
        writes += [create("replicasets", made), *_annotate(deployment, _revision(made))]
        writes += deployment_status.writes(deployment, None, old, now)
        return Plan(tuple(writes))
    if new is not None:
        writes += _raise_revision(deployment, new, old)
    targets = _targets(deployment, new, old)
    for replica_set in mine:
        name = replica_set["metadata"]["name"]
        before, after = replica_set["spec"]["replicas"], targets.get(name)
        if after is not None and after != before:
            writes.append(patch("replicasets", replica_set, {"spec": {"replicas": after}}))
            direction = "up" if after > before else "down"
            message = f"Scaled {direction} replica set {name} from {before} to {after}"
            events.append(Happening(deployment, "Normal", "ScalingReplicaSet", message))
    writes += _forgotten(deployment, old)
    writes += deployment_status.writes(deployment, new, old, now)
    again = deployment_status.seconds_to_deadline(deployment, now)
    return Plan(tuple(writes), tuple(events), again)


def newest(deployment: JsonObject, replica_sets: Iterable[JsonObject]) -> JsonObject | None:
    """Return the ReplicaSet whose template is the Deployment's, the oldest if there are several."""
    wanted = deployment["spec"]["template"]
    found = [each for each in replica_sets if _template(each) == _without_hash(wanted)]
    return min(found, key=lambda each: each["metadata"].get("creationTimestamp", ""), default=None)


def bounds(deployment: JsonObject) -> tuple[int, int]:
    """Return maxSurge, rounded up, and maxUnavailable, rounded down, as numbers of pods."""
    rolling = deployment["spec"]["strategy"].get("rollingUpdate") or {}
    replicas = deployment["spec"]["replicas"]
    surge = share(rolling.get("maxSurge", 0), replicas, up=True)
    unavailable = share(rolling.get("maxUnavailable", 0), replicas, up=False)
    # Both may round to nothing, with which a rollout could not move.
    return surge, unavailable if surge or unavailable else 1


def share(value: Any, total: int, *, up: bool) -> int:
    """Return a number of pods, which may be given as a percentage of all."""
    if isinstance(value, int):
        return value
    exact = int(str(value).removesuffix("%")) * total / 100
    return math.ceil(exact) if up else math.floor(exact)


def _targets(
    deployment: JsonObject, new: JsonObject | None, old: list[JsonObject]
) -> dict[str, int]:
    """Return the replicas of the ReplicaSets that should change, by name."""
    spec = deployment["spec"]
    wanted: int = spec["replicas"]
    running = [each for each in (*old, *([new] if new else [])) if each["spec"]["replicas"]]
    if spec.get("paused") or new is None:
        return {running[0]["metadata"]["name"]: wanted} if len(running) == 1 else {}
    name = new["metadata"]["name"]
    if spec["strategy"]["type"] == "Recreate":
        if any(each["spec"]["replicas"] for each in old):
            return {each["metadata"]["name"]: 0 for each in old}
        gone = not any(_number(each, "replicas", "terminatingReplicas") for each in old)
        return {name: wanted} if gone else {}
    surge, unavailable = bounds(deployment)
    total = sum(each["spec"]["replicas"] for each in (new, *old))
    have = new["spec"]["replicas"]
    if have > wanted:
        return {name: wanted}
    if grown := min(wanted - have, max(wanted + surge - total, 0)):
        return {name: have + grown}
    return _shrunk(new, old, wanted - unavailable)


def _shrunk(new: JsonObject, old: list[JsonObject], least: int) -> dict[str, int]:
    """Take pods from old ReplicaSets, so that `least` stay available: unavailable pods first."""
    targets = {each["metadata"]["name"]: each["spec"]["replicas"] for each in old}
    total = new["spec"]["replicas"] + sum(targets.values())
    new_unavailable = max(new["spec"]["replicas"] - _number(new, "availableReplicas"), 0)
    room = total - least - new_unavailable
    oldest_first = sorted(old, key=lambda each: each["metadata"].get("creationTimestamp", ""))
    for each in oldest_first:
        name = each["metadata"]["name"]
        taken = min(max(room, 0), max(targets[name] - _number(each, "availableReplicas"), 0))
        targets[name] -= taken
        room -= taken
    available = sum(_number(each, "availableReplicas") for each in (new, *old))
    room = min(room, available - least)
    for each in oldest_first:
        name = each["metadata"]["name"]
        taken = min(max(room, 0), targets[name])
        targets[name] -= taken
        room -= taken
    return targets


def _replica_set(deployment: JsonObject, old: list[JsonObject]) -> JsonObject:
    """Return a ReplicaSet of the Deployment's template, without pods yet."""
    meta, spec = deployment["metadata"], deployment["spec"]
    label = objects.digest(spec["template"])
    template_meta = spec["template"].get("metadata") or {}
    labels = {**(template_meta.get("labels") or {}), HASH: label}
    selector = dict(spec["selector"])
    selector["matchLabels"] = {**(selector.get("matchLabels") or {}), HASH: label}
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": f"{meta['name']}-{label}",
            "namespace": meta["namespace"],
            "labels": labels,
            "annotations": {**_copied(deployment), REVISION: str(_last(old) + 1)},
            "ownerReferences": [objects.reference(deployment)],
        },
        "spec": {
            "replicas": 0,
            "selector": selector,
            "minReadySeconds": spec.get("minReadySeconds", 0),
            "template": {
                "metadata": {**template_meta, "labels": labels},
                "spec": spec["template"]["spec"],
            },
        },
    }


def _raise_revision(deployment: JsonObject, new: JsonObject, old: list[JsonObject]) -> list[Write]:
    """Write the last revision to the newest ReplicaSet, which an undo may have brought back."""
    revision = max(_revision(new), _last(old) + 1)
    wanted = {**_copied(deployment), REVISION: str(revision)}
    have = new["metadata"].get("annotations") or {}
    writes = []
    if any(have.get(name) != value for name, value in wanted.items()):
        writes.append(patch("replicasets", new, {"metadata": {"annotations": wanted}}))
    return writes + _annotate(deployment, revision)


def _annotate(deployment: JsonObject, revision: int) -> list[Write]:
    if (deployment["metadata"].get("annotations") or {}).get(REVISION) == str(revision):
        return []
    return [
        patch("deployments", deployment, {"metadata": {"annotations": {REVISION: str(revision)}}})
    ]


def _forgotten(deployment: JsonObject, old: list[JsonObject]) -> list[Write]:
    """Delete the empty ReplicaSets beyond revisionHistoryLimit, the oldest first."""
    empty = [
        each
        for each in old
        if not each["spec"]["replicas"]
        and not _number(each, "replicas", "terminatingReplicas")
        and not objects.is_leaving(each)
    ]
    empty.sort(key=_revision)
    surplus = max(len(empty) - deployment["spec"]["revisionHistoryLimit"], 0)
    return [delete("replicasets", each) for each in empty[:surplus]]


def _copied(deployment: JsonObject) -> dict[str, str]:
    annotations = deployment["metadata"].get("annotations") or {}
    return {name: value for name, value in annotations.items() if name not in _NOT_COPIED}


def _revision(replica_set: JsonObject) -> int:
    text = (replica_set["metadata"].get("annotations") or {}).get(REVISION, "0")
    return int(text) if text.isdigit() else 0


def _last(replica_sets: list[JsonObject]) -> int:
    return max(map(_revision, replica_sets), default=0)


def _template(replica_set: JsonObject) -> JsonObject:
    return _without_hash(replica_set["spec"]["template"])


def _without_hash(template: JsonObject) -> JsonObject:
    meta = template.get("metadata") or {}
    labels = {k: v for k, v in (meta.get("labels") or {}).items() if k != HASH}
    return {**template, "metadata": {**meta, "labels": labels}}


def _number(replica_set: JsonObject, *names: str) -> int:
    status = replica_set.get("status") or {}
    return sum(status.get(name, 0) for name in names)
