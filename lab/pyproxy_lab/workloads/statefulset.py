"""StatefulSets: pods by ordinal, made and replaced in order. Nothing here does I/O.

Facts: the StatefulSet controller of Kubernetes v1.36. The lab makes no volume claims.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from pyproxy_lab.client import JsonObject
from pyproxy_lab.workloads import objects
from pyproxy_lab.workloads.plan import Happening, Plan, Write, create, delete, set_status
from pyproxy_lab.workloads.revisions import HASH, History, revision_of

POD_NAME = "statefulset.kubernetes.io/pod-name"
INDEX = "apps.kubernetes.io/pod-index"


def plan(
    stateful_set: JsonObject,
    pods: Iterable[JsonObject],
    revisions: Iterable[JsonObject],
    now: datetime,
) -> Plan:
    """Compare a StatefulSet with its namespace's pods and revisions. `now` has a time zone."""
    spec, before = stateful_set["spec"], stateful_set.get("status") or {}
    mine, writes = objects.claim(stateful_set, "pods", pods)
    history = History(stateful_set, revisions, mine)
    writes += history.writes
    by_ordinal = {ordinal(pod): pod for pod in mine}
    events: list[Happening] = []
    current = before.get("currentRevision") or history.current
    if not objects.is_leaving(stateful_set):
        some, events = _step(stateful_set, by_ordinal, history, current, now)
        writes += some
    least = spec.get("minReadySeconds", 0)
    waits = [objects.seconds_to_available(pod, least, now) for pod in mine]
    updated = sum(revision_of(pod) == history.current for pod in mine)
    ready = sum(wait is not None for wait in waits)
    if updated == len(mine) == spec["replicas"] == ready:
        current = history.current
    status = {
        "observedGeneration": stateful_set["metadata"]["generation"],
        "replicas": len(mine),
        "readyReplicas": ready,
        "availableReplicas": sum(wait == 0 for wait in waits),
        "updatedReplicas": updated,
        "currentReplicas": sum(revision_of(pod) == current for pod in mine),
        "currentRevision": current,
        "updateRevision": history.current,
    }
    writes += set_status("statefulsets", stateful_set, status)
    return Plan(tuple(writes), tuple(events), min((w for w in waits if w), default=None))


def ordinal(pod: JsonObject) -> int:
    """Return the number at the end of a pod's name."""
    text = pod["metadata"]["name"].rpartition("-")[2]
    return int(text) if text.isdigit() else -1


def _step(
    stateful_set: JsonObject,
    pods: dict[int, JsonObject],
    history: History,
    current: str,
    now: datetime,
) -> tuple[list[Write], list[Happening]]:
    """Return the next writes: one pod at a time, or all with podManagementPolicy Parallel."""
    spec = stateful_set["spec"]
    first = (spec.get("ordinals") or {}).get("start", 0)
    wanted = range(first, first + spec["replicas"])
    one_by_one = spec["podManagementPolicy"] == "OrderedReady"
    partition = (spec["updateStrategy"].get("rollingUpdate") or {}).get("partition", 0)
    least = spec.get("minReadySeconds", 0)
    writes: list[Write] = []
    events: list[Happening] = []

    def settled(number: int) -> bool:
        pod = pods.get(number)
        return (
            pod is not None
            and not objects.is_leaving(pod)
            and objects.seconds_to_available(pod, least, now) == 0
        )

    for number in wanted:
        pod = pods.get(number)
        if pod is None:
            name = history.current if number >= partition else current
            made = _pod(stateful_set, number, name, history)
            writes.append(create("pods", made))
            message = f"create Pod {made['metadata']['name']} in StatefulSet successful"
            events.append(Happening(stateful_set, "Normal", "SuccessfulCreate", message))
        elif objects.has_ended(pod) and not objects.is_leaving(pod):
            writes.append(delete("pods", pod))
        if one_by_one and (writes or not settled(number)):
            return writes, events
    for number in sorted((each for each in pods if each not in wanted), reverse=True):
        if not objects.is_leaving(pods[number]):
            writes.append(delete("pods", pods[number]))
            message = f"delete Pod {pods[number]['metadata']['name']} in StatefulSet successful"
            events.append(Happening(stateful_set, "Normal", "SuccessfulDelete", message))
        if one_by_one:
            return writes, events
    if writes or spec["updateStrategy"]["type"] != "RollingUpdate":
        return writes, events
    for number in sorted(wanted, reverse=True):
        if number >= partition and revision_of(pods[number]) != history.current:
            return [] if objects.is_leaving(pods[number]) else [delete("pods", pods[number])], []
        if not settled(number):
            return [], []
    return [], []


def _pod(stateful_set: JsonObject, number: int, revision: str, history: History) -> JsonObject:
    name = f"{stateful_set['metadata']['name']}-{number}"
    labels = {HASH: revision, POD_NAME: name, INDEX: str(number)}
    pod = objects.pod_of(stateful_set, history.template(revision), labels)
    pod["metadata"]["name"] = name
    pod["spec"]["hostname"] = name
    if service := stateful_set["spec"].get("serviceName"):
        pod["spec"]["subdomain"] = service
    return pod
