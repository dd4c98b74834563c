"""DaemonSets: one pod on each node that the template selects. Nothing here does I/O.

Facts: the DaemonSet controller of Kubernetes v1.36. The controller names the node itself, without
the scheduler, and replaces old pods by maxUnavailable alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from pyproxy_lab.client import JsonObject
from pyproxy_lab.workloads import objects
from pyproxy_lab.workloads.deployment import share
from pyproxy_lab.workloads.plan import Happening, Plan, create, delete, set_status
from pyproxy_lab.workloads.revisions import HASH, History, revision_of
from pyproxy_lab.workloads.scheduler import selects


def plan(
    daemon_set: JsonObject,
    pods: Iterable[JsonObject],
    nodes: Mapping[str, JsonObject],
    revisions: Iterable[JsonObject],
    now: datetime,
) -> Plan:
    """Compare a DaemonSet with its namespace's pods, the nodes by name, and its revisions."""
    spec = daemon_set["spec"]
    mine, writes = objects.claim(daemon_set, "pods", pods)
    history = History(daemon_set, revisions, mine)
    writes += history.writes
    eligible = {name for name, node in nodes.items() if selects(spec["template"]["spec"], node)}
    by_node: dict[str, JsonObject] = {}
    surplus: list[JsonObject] = []
    for pod in mine:
        node = pod["spec"].get("nodeName", "")
        if node not in eligible or node in by_node or objects.has_ended(pod):
            surplus.append(pod)
        else:
            by_node[node] = pod
    events: list[Happening] = []
    least = spec.get("minReadySeconds", 0)
    waits = {n: objects.seconds_to_available(pod, least, now) for n, pod in by_node.items()}
    if not objects.is_leaving(daemon_set):
        writes += [delete("pods", pod) for pod in surplus if not objects.is_leaving(pod)]
        for node in sorted(eligible - by_node.keys()):
            made = objects.pod_of(daemon_set, spec["template"], {HASH: history.current})
            made["metadata"]["generateName"] = f"{daemon_set['metadata']['name']}-"
            made["spec"]["nodeName"] = node
            writes.append(create("pods", made))
        if spec["updateStrategy"]["type"] == "RollingUpdate":
            allowed = _allowed(daemon_set, eligible, waits)
            for node in sorted(_outdated(by_node, history.current), key=lambda n: waits[n] == 0):
                if waits[node] == 0 and not allowed:
                    continue
                allowed -= waits[node] == 0
                writes.append(delete("pods", by_node[node]))
                message = f"Deleted pod: {by_node[node]['metadata']['name']}"
                events.append(Happening(daemon_set, "Normal", "SuccessfulDelete", message))
    available = sum(wait == 0 for wait in waits.values())
    status = {
        "observedGeneration": daemon_set["metadata"]["generation"],
        "currentNumberScheduled": len(by_node),
        "desiredNumberScheduled": len(eligible),
        "numberMisscheduled": sum(pod["spec"].get("nodeName") not in eligible for pod in mine),
        "numberReady": sum(wait is not None for wait in waits.values()),
        "updatedNumberScheduled": sum(
            revision_of(pod) == history.current for pod in by_node.values()
        ),
        "numberAvailable": available,
        "numberUnavailable": len(eligible) - available,
    }
    writes += set_status("daemonsets", daemon_set, status)
    return Plan(tuple(writes), tuple(events), min((w for w in waits.values() if w), default=None))


def _allowed(daemon_set: JsonObject, eligible: set[str], waits: Mapping[str, float | None]) -> int:
    """Return how many available pods may go now."""
    rolling = daemon_set["spec"]["updateStrategy"].get("rollingUpdate") or {}
    most = max(share(rolling.get("maxUnavailable", 1), len(eligible), up=True), 1)
    return max(most - sum(waits.get(node) != 0 for node in eligible), 0)


def _outdated(pods: Mapping[str, JsonObject], current: str) -> list[str]:
    return [
        node
        for node, pod in pods.items()
        if revision_of(pod) != current and not objects.is_leaving(pod)
    ]
