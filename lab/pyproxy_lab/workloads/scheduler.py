"""The scheduler: a node for each pod that has none. Nothing here does I/O.

It honours nodeSelector, taints with tolerations, and cordons, and spreads the pods of one owner. It
ignores affinity, resources and host ports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from pyproxy_lab.client import JsonObject
from pyproxy_lab.workloads import objects
from pyproxy_lab.workloads.plan import Happening, Plan, Write, patch, path_of

_BLOCKING = {"NoSchedule", "NoExecute"}


def plan(
    pod: JsonObject, nodes: Mapping[str, JsonObject], pods: Iterable[JsonObject], now: datetime
) -> Plan:
    """Bind a pod to a node, or write why it has none. `pods` are those of the whole cluster."""
    if pod["spec"].get("nodeName") or not objects.is_active(pod):
        return Plan()
    name, why = choose(pod, nodes, pods)
    moment = objects.written(now)
    if not name:
        found = objects.condition(pod, "PodScheduled")
        if found is not None and found.get("message") == why:
            return Plan()
        scheduled = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": why,
            "lastTransitionTime": moment,
        }
        write = Write(
            "PATCH", "pods", f"{path_of('pods', pod)}/status",
            {"status": {"conditions": [scheduled]}},
        )  # fmt: skip
        return Plan((write,), (Happening(pod, "Warning", "FailedScheduling", why),))
    meta = pod["metadata"]
    message = f"Successfully assigned {meta['namespace']}/{meta['name']} to {name}"
    return Plan(
        (patch("pods", pod, {"spec": {"nodeName": name}}),),
        (Happening(pod, "Normal", "Scheduled", message),),
    )


def choose(
    pod: JsonObject, nodes: Mapping[str, JsonObject], pods: Iterable[JsonObject]
) -> tuple[str, str]:
    """Return the node with the fewest pods of the same owner, then the fewest pods.

    If no node fits, the name is empty, and the message counts the reasons.
    """
    reasons: dict[str, int] = {}
    fitting = []
    for name, node in nodes.items():
        if reason := _obstacle(pod["spec"], node):
            reasons[reason] = reasons.get(reason, 0) + 1
        else:
            fitting.append(name)
    if not fitting:
        listed = ", ".join(f"{count} node(s) {reason}" for reason, count in sorted(reasons.items()))
        return "", f"0/{len(nodes)} nodes are available: {listed or 'there are none'}."
    same: dict[str, int] = {}
    every: dict[str, int] = {}
    group = _group(pod)
    for other in pods:
        node_name = other["spec"].get("nodeName", "")
        if objects.is_active(other):
            every[node_name] = every.get(node_name, 0) + 1
            same[node_name] = same.get(node_name, 0) + (_group(other) == group)
    return min(fitting, key=lambda name: (same.get(name, 0), every.get(name, 0), name)), ""


def selects(spec: JsonObject, node: JsonObject) -> bool:
    """Return whether a pod's nodeSelector matches a node."""
    labels = node["metadata"].get("labels") or {}
    return all(labels.get(k) == v for k, v in (spec.get("nodeSelector") or {}).items())


def _obstacle(spec: JsonObject, node: JsonObject) -> str:
    if node["spec"].get("unschedulable"):
        return "were unschedulable"
    for taint in node["spec"].get("taints") or ():
        if taint.get("effect") in _BLOCKING and not _tolerated(spec, taint):
            return f"had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
    return "" if selects(spec, node) else "didn't match Pod's node affinity/selector"


def _tolerated(spec: JsonObject, taint: JsonObject) -> bool:
    for toleration in spec.get("tolerations") or ():
        if toleration.get("effect") not in (None, "", taint["effect"]):
            continue
        key = toleration.get("key", "")
        if toleration.get("operator", "Equal") == "Exists":
            if key in ("", taint["key"]):
                return True
        elif key == taint["key"] and toleration.get("value", "") == taint.get("value", ""):
            return True
    return False


def _group(pod: JsonObject) -> tuple[str, object]:
    owner = objects.controller_of(pod)
    labels = pod["metadata"].get("labels") or {}
    return pod["metadata"]["namespace"], owner["uid"] if owner else sorted(labels.items())
