"""The status of a Deployment: its counts, and the conditions Available and Progressing."""

from __future__ import annotations

from datetime import datetime

from pyproxy_lab.client import JsonObject
from pyproxy_lab.workloads import objects
from pyproxy_lab.workloads.plan import Write, set_status

_COUNTS = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")


def writes(
    deployment: JsonObject, new: JsonObject | None, old: list[JsonObject], now: datetime
) -> tuple[Write, ...]:
    """Write the status where it has changed. `now` is the time, with a time zone."""
    replica_sets = [*old, *([new] if new else [])]

    def total(name: str) -> int:
        return sum((each.get("status") or {}).get(name, 0) for each in replica_sets)

    wanted = deployment["spec"]["replicas"]
    available = total("availableReplicas")
    status = {
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": total("replicas"),
        "updatedReplicas": (new or {}).get("status", {}).get("replicas", 0),
        "readyReplicas": total("readyReplicas"),
        "availableReplicas": available,
        "unavailableReplicas": max(total("replicas") - available, wanted - available, 0),
    }
    before = deployment.get("status") or {}
    moved = any(before.get(name, 0) != status[name] for name in _COUNTS)
    complete = new is not None and (
        status["updatedReplicas"] == status["replicas"] == status["availableReplicas"] == wanted
    )
    conditions = [
        _available(deployment, available, now),
        _progressing(deployment, new, now, complete=complete, moved=moved),
    ]
    return set_status("deployments", deployment, {**status, "conditions": conditions})


def seconds_to_deadline(deployment: JsonObject, now: datetime) -> float | None:
    """Return the seconds until a rollout that does not move has failed; None if none runs."""
    found = objects.condition(deployment, "Progressing")
    if found is None or found["status"] != "True" or found["reason"] == "NewReplicaSetAvailable":
        return None
    passed = (now - datetime.fromisoformat(found["lastUpdateTime"])).total_seconds()
    deadline: int = deployment["spec"]["progressDeadlineSeconds"]
    return max(deadline - passed, 0.0) + 1.0


def _available(deployment: JsonObject, available: int, now: datetime) -> JsonObject:
    from pyproxy_lab.workloads.deployment import bounds  # noqa: PLC0415

    unavailable = 0
    if deployment["spec"]["strategy"]["type"] == "RollingUpdate":
        unavailable = bounds(deployment)[1]
    if available >= deployment["spec"]["replicas"] - unavailable:
        reason, status = "MinimumReplicasAvailable", "True"
        message = "Deployment has minimum availability."
    else:
        reason, status = "MinimumReplicasUnavailable", "False"
        message = "Deployment does not have minimum availability."
    return _condition(deployment, "Available", status, reason, message, now)


def _progressing(
    deployment: JsonObject,
    new: JsonObject | None,
    now: datetime,
    *,
    complete: bool,
    moved: bool,
) -> JsonObject:
    name = deployment["metadata"]["name"]
    shown = f'ReplicaSet "{new["metadata"]["name"]}"' if new else f'Deployment "{name}"'
    before = objects.condition(deployment, "Progressing")
    observed = (deployment.get("status") or {}).get("observedGeneration")
    if complete:
        reason, status, verb = "NewReplicaSetAvailable", "True", "has successfully progressed"
    else:
        started = before is None or observed != deployment["metadata"]["generation"]
        left = seconds_to_deadline(deployment, now)
        failed = before is not None and before["reason"] == "ProgressDeadlineExceeded"
        late = failed or (left is not None and left <= 1.0)
        if late and not moved and not started:
            reason, status, verb = "ProgressDeadlineExceeded", "False", "has timed out progressing"
        else:
            reason, status, verb = "ReplicaSetUpdated", "True", "is progressing"
    made = _condition(deployment, "Progressing", status, reason, f"{shown} {verb}.", now)
    if moved and before is not None and reason == "ReplicaSetUpdated":
        made["lastUpdateTime"] = objects.written(now)
    return made


def _condition(
    deployment: JsonObject, kind: str, status: str, reason: str, message: str, now: datetime
) -> JsonObject:
    """Return a condition, with the times of the one before where it is the same."""
    before = objects.condition(deployment, kind)
    moment = objects.written(now)
    same = before is not None and before["status"] == status
    unchanged = same and before is not None and before["reason"] == reason
    return {
        "type": kind,
        "status": status,
        "lastUpdateTime": before["lastUpdateTime"] if unchanged and before else moment,
        "lastTransitionTime": before["lastTransitionTime"] if same and before else moment,
        "reason": reason,
        "message": message,
    }
