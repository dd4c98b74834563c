"""API objects as the server handles them: decoded JSON, and the few fields all kinds share."""

from __future__ import annotations

import copy
import secrets
import uuid
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]
"""A decoded JSON object. The API is open-ended, so inside the server it stays JSON."""

SERVER_FIELDS = (
    "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds",
)  # fmt: skip
"""The fields of metadata that a client cannot set."""

_UNSUPPORTED_FIELDS = {"managedFields", "selfLink"}
_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_LONGEST_GENERATED_BASE = 58


def metadata(obj: Object) -> Object:
    """Return an object's metadata, made if it has none."""
    return section(obj, "metadata")


def section(obj: Object, name: str) -> Object:
    """Return a part such as spec or status, made if the object has none."""
    found = obj.get(name)
    if not isinstance(found, dict):
        found = obj[name] = {}
    return found


def timestamp(moment: datetime | None = None) -> str:
    """Write a time as metadata does: UTC, whole seconds."""
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")


def generated_name(base: str) -> str:
    """Make a name from metadata.generateName: the base, cut to fit, and five random letters."""
    suffix = "".join(secrets.choice(_SUFFIX_LETTERS) for _ in range(5))
    return base[:_LONGEST_GENERATED_BASE] + suffix


def give_birth(obj: Object, has_generation: bool) -> None:
    """Return a new object what only the server gives, in the order in which it is shown."""
    meta = obj["metadata"]
    given = {k: v for k, v in meta.items() if k not in {"name", "generateName", "namespace"}}
    born: Object = {"name": meta["name"]}
    for field in ("generateName", "namespace"):
        if meta.get(field):
            born[field] = meta[field]
    born |= {"uid": str(uuid.uuid4()), "resourceVersion": ""}
    if has_generation:
        born["generation"] = 1
    born["creationTimestamp"] = timestamp()
    obj["metadata"] = born | {
        k: v for k, v in given.items() if k not in born and k not in _UNSUPPORTED_FIELDS
    }
    put_in_order(obj)


def keep_server_metadata(meta: Object, before: Object) -> None:
    """Set what a client cannot change, whatever it sent."""
    for field in (*SERVER_FIELDS, "generateName", "generation"):
        if field in before:
            meta[field] = before[field]
        else:
            meta.pop(field, None)
    for field in _UNSUPPORTED_FIELDS:
        meta.pop(field, None)


def keep_other_parts(new: Object, before: Object, subresource: str) -> None:
    """Keep the status in a change of the object, and all but the status in one of the status."""
    if subresource == "status":
        meta, status_part = new["metadata"], new.get("status", {})
        kept = copy.deepcopy(before)
        new.clear()
        new.update(kept)
        new["status"] = status_part
        for field in ("labels", "annotations", "finalizers"):
            if field in meta:
                new["metadata"][field] = meta[field]
    elif "status" in before:
        new["status"] = copy.deepcopy(before["status"])


def content(obj: Object) -> Object:
    """Return what metadata.generation counts the changes of."""
    return {k: v for k, v in obj.items() if k not in {"metadata", "kind", "apiVersion"}}


def put_in_order(obj: Object) -> None:
    """Put metadata first and the status last, as they are shown."""
    rest = {name: obj[name] for name in obj if name not in {"metadata", "status"}}
    ordered = {"metadata": obj["metadata"], **rest}
    if "status" in obj:
        ordered["status"] = obj["status"]
    obj.clear()
    obj.update(ordered)
