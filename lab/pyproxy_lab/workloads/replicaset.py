"""ReplicaSets: how many pods there should be, and which go first. Nothing here does I/O.

Facts: the ReplicaSet controller of Kubernetes v1.36.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from pyproxy_lab.client import JsonObject
from pyproxy_lab.workloads import objects
from pyproxy_lab.workloads.plan import Happening, Plan, create, delete, set_status

_MOST_AT_ONCE = 20
"""Pods that one plan creates or deletes at most; the next plan goes on."""

_COST = "controller.kubernetes.io/pod-deletion-cost"
_PHASES = {"Pending": 0, "Unknown": 1, "Running": 2}


def plan(replica_set: JsonObject, pods: Iterable[JsonObject], now: datetime) -> Plan:
    """Compare a ReplicaSet with its namespace's pods. `now` is the time, with a time zone."""
    meta, spec = replica_set["metadata"], replica_set["spec"]
    mine, writes = objects.claim(replica_set, "pods", pods)
    active = [pod for pod in mine if objects.is_active(pod)]
    events = []
    missing = spec["replicas"] - len(active)
    if not objects.is_leaving(replica_set):
        for _ in range(min(missing, _MOST_AT_ONCE)):
            pod = objects.pod_of(replica_set, spec["template"])
            pod["metadata"]["generateName"] = f"{meta['name']}-"
            writes.append(create("pods", pod))
        for pod in sorted(active, key=_first_to_go)[: min(max(-missing, 0), _MOST_AT_ONCE)]:
            writes.append(delete("pods", pod))
            message = f"Deleted pod: {pod['metadata']['name']}"
            events.append(Happening(replica_set, "Normal", "SuccessfulDelete", message))
    least = spec.get("minReadySeconds", 0)
    waits = [objects.seconds_to_available(pod, least, now) for pod in active]
    status = {
        "replicas": len(active),
        "fullyLabeledReplicas": len(active),
        "readyReplicas": sum(wait is not None for wait in waits),
        "availableReplicas": sum(wait == 0 for wait in waits),
        "terminatingReplicas": sum(objects.is_leaving(pod) for pod in mine),
        "observedGeneration": meta["generation"],
    }
    writes += set_status("replicasets", replica_set, status)
    return Plan(tuple(writes), tuple(events), min((w for w in waits if w), default=None))


def _first_to_go(pod: JsonObject) -> tuple[object, ...]:
    """Order pods by who is deleted first: those that serve nothing yet, then the newest."""
    meta, status = pod["metadata"], pod.get("status", {})
    cost = (meta.get("annotations") or {}).get(_COST, "0")
    newest_first = [-ord(letter) for letter in meta.get("creationTimestamp", "")]
    return (
        bool(pod["spec"].get("nodeName")),
        _PHASES.get(status.get("phase", "Pending"), 1),
        objects.is_ready(pod),
        int(cost) if cost.lstrip("-").isdigit() else 0,
        newest_first,
        meta["name"],
    )
