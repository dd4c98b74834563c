"""A cluster as values, in which controllers' plans are carried out: no API, no pods, no time."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

from pyproxy_lab.apiserver.kinds.workloads import (
    DaemonSetRules,
    DeploymentRules,
    ReplicaSetRules,
    StatefulSetRules,
    WorkloadRules,
)
from pyproxy_lab.apiserver.patch import merge
from pyproxy_lab.workloads.plan import Plan, Write

Json = dict[str, Any]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
_RULES: dict[str, WorkloadRules] = {
    "deployments": DeploymentRules(),
    "replicasets": ReplicaSetRules(),
    "statefulsets": StatefulSetRules(),
    "daemonsets": DaemonSetRules(),
}


class Model:
    """Objects by resource and name, all in the namespace default."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Json]] = {}
        self._count = 0

    def add(self, plural: str, obj: Json) -> Json:
        """Store an object as the API server would, and return it."""
        self._count += 1
        made = copy.deepcopy(obj)
        meta = made["metadata"]
        meta.setdefault("name", f"{meta.get('generateName', '')}{self._count}")
        meta |= {"namespace": "default", "uid": f"uid-{self._count}", "generation": 1}
        meta |= {"resourceVersion": "1", "creationTimestamp": f"2026-01-01T00:00:{self._count:05}Z"}
        if plural in _RULES:
            _RULES[plural].default(made)
        made.setdefault("status", {})
        self.objects.setdefault(plural, {})[meta["name"]] = made
        return made

    def all(self, plural: str) -> list[Json]:
        """Return the objects of one resource."""
        return list(self.objects.get(plural, {}).values())

    def apply(self, plan: Plan) -> bool:
        """Carry a plan out; return whether it wrote anything."""
        for write in plan.writes:
            self._write(write)
        return bool(plan.writes)

    def set_ready(self, name: str, ready: bool = True) -> None:
        """Run a pod, ready or not."""
        condition = {
            "type": "Ready",
            "status": str(ready),
            "lastTransitionTime": "2025-12-31T00:00:00Z",
        }
        self.objects["pods"][name]["status"] = {"phase": "Running", "conditions": [condition]}

    def _write(self, write: Write) -> None:
        parts = write.path.strip("/").split("/")
        at = parts.index(write.plural)
        found = self.objects.setdefault(write.plural, {})
        if write.method == "POST":
            assert write.body is not None
            self.add(write.plural, write.body)
            return
        name = parts[at + 1]
        if write.method == "DELETE":
            del found[name]
            return
        assert write.body is not None
        changed = merge(found[name], write.body)
        if "spec" in write.body:
            changed["metadata"]["generation"] += 1
        found[name] = changed


def workload(name: str, image: str = "web:1", **spec: Any) -> Json:
    """Return a workload of pods with one container."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
            **spec,
        },
    }
