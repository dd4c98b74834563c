"""Facts about pods and their owners that several controllers need. Nothing here does I/O."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime

from pyproxy_lab.apiserver.selectors import label_selector_matches
from pyproxy_lab.client import JsonObject
from pyproxy_lab.workloads.plan import Write, adopt, patch

_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_ENDED = {"Failed", "Succeeded"}


def reference(owner: JsonObject) -> JsonObject:
    """Return the ownerReference of a controller."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def controller_of(obj: JsonObject) -> JsonObject | None:
    """Return the ownerReference of an object's controller."""
    for owner in obj["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            found: JsonObject = owner
            return found
    return None


def claim(
    owner: JsonObject, plural: str, candidates: Iterable[JsonObject]
) -> tuple[list[JsonObject], list[Write]]:
    """Return the objects that an owner controls, and the writes that adopt and release some.

    An owner adopts what its selector matches and nothing controls, and releases what it controls
    and its selector no longer matches. `candidates` are of the owner's namespace.
    """
    mine, writes = [], []
    for obj in candidates:
        controller = controller_of(obj)
        labels = obj["metadata"].get("labels") or {}
        matches = label_selector_matches(owner["spec"]["selector"], labels)
        others = obj["metadata"].get("ownerReferences") or []
        if controller is None:
            if matches and not is_leaving(obj) and not is_leaving(owner):
                references = [*others, reference(owner)]
                changes = {"metadata": {"ownerReferences": references}}
                writes.append(adopt(plural, obj, owner, changes))
                mine.append(obj)
        elif controller["uid"] == owner["metadata"]["uid"]:
            if matches:
                mine.append(obj)
            elif not is_leaving(obj):
                kept = [each for each in others if each["uid"] != controller["uid"]]
                writes.append(patch(plural, obj, {"metadata": {"ownerReferences": kept or None}}))
    return mine, writes


def is_leaving(obj: JsonObject) -> bool:
    """Return whether an object is being deleted."""
    return bool(obj["metadata"].get("deletionTimestamp"))


def is_active(pod: JsonObject) -> bool:
    """Return whether a pod counts: it has not ended, and is not being deleted."""
    return not has_ended(pod) and not is_leaving(pod)


def has_ended(pod: JsonObject) -> bool:
    """Return whether all containers of a pod have ended, and none starts again."""
    return pod.get("status", {}).get("phase") in _ENDED


def condition(obj: JsonObject, kind: str) -> JsonObject | None:
    """Return a condition of an object's status."""
    for each in obj.get("status", {}).get("conditions") or ():
        if each.get("type") == kind:
            found: JsonObject = each
            return found
    return None


def is_ready(pod: JsonObject) -> bool:
    """Return whether a pod's Ready condition is true."""
    found = condition(pod, "Ready")
    return found is not None and found.get("status") == "True"


def seconds_to_available(pod: JsonObject, least: int, now: datetime) -> float | None:
    """Return in how many seconds a pod will have been ready for `least` seconds: 0 if it has.

    None for a pod that is not ready.
    """
    found = condition(pod, "Ready")
    if found is None or found.get("status") != "True":
        return None
    if not least:
        return 0.0
    since = datetime.fromisoformat(found["lastTransitionTime"])
    return max(least - (now - since).total_seconds(), 0.0)


def written(moment: datetime) -> str:
    """Write a time as the API does."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def digest(value: object) -> str:
    """Return ten letters that depend on a JSON value alone, as in the names of ReplicaSets."""
    raw = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    return "".join(_LETTERS[byte % len(_LETTERS)] for byte in raw[:10])


def pod_of(
    owner: JsonObject, template: JsonObject, labels: dict[str, str] | None = None
) -> JsonObject:
    """Return a pod made of a template, without a name, owned by `owner`."""
    meta = template.get("metadata") or {}
    made: JsonObject = {
        "namespace": owner["metadata"]["namespace"],
        "labels": {**(meta.get("labels") or {}), **(labels or {})},
        "ownerReferences": [reference(owner)],
    }
    if meta.get("annotations"):
        made["annotations"] = dict(meta["annotations"])
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": made,
        "spec": json.loads(json.dumps(template["spec"])),
    }
