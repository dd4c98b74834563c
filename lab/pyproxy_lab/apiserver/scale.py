"""The subresource scale: the replicas of a workload as an object of autoscaling/v1."""

from __future__ import annotations

from typing import Any

from pyproxy_lab.apiserver import status
from pyproxy_lab.apiserver.objects import Object

_META = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
_OPERATORS = {"In": "in", "NotIn": "notin"}


def scale_of(obj: Object) -> Object:
    """Return the Scale of a Deployment, ReplicaSet or StatefulSet."""
    meta, spec = obj["metadata"], obj["spec"]
    shown: Object = {"replicas": obj.get("status", {}).get("replicas", 0)}
    if text := selector_text(spec.get("selector") or {}):
        shown["selector"] = text
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {name: meta[name] for name in _META if name in meta},
        "spec": {"replicas": spec.get("replicas", 0)},
        "status": shown,
    }


def apply(obj: Object, scale: object) -> Object:
    """Set the replicas of an object to those of a Scale, in place. Raises ApiError (400)."""
    spec: Any = scale.get("spec") if isinstance(scale, dict) else None
    replicas: Any = spec.get("replicas", 0) if isinstance(spec, dict) else None
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
        raise status.bad_request(f"Scale: spec.replicas: {replicas!r} is no number of replicas")
    obj["spec"]["replicas"] = replicas
    version = scale.get("metadata", {}).get("resourceVersion") if isinstance(scale, dict) else ""
    if version:
        obj["metadata"]["resourceVersion"] = version
    return obj


def selector_text(selector: Object) -> str:
    """Write a LabelSelector as the selector of a list request."""
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for expression in selector.get("matchExpressions") or ():
        key, operator = expression.get("key", ""), expression.get("operator", "")
        values = ",".join(sorted(expression.get("values") or ()))
        if operator in _OPERATORS:
            parts.append(f"{key} {_OPERATORS[operator]} ({values})")
        else:
            parts.append(key if operator == "Exists" else f"!{key}")
    return ",".join(parts)
