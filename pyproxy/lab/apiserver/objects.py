"""API objects as the server handles them: decoded JSON, and the few fields all kinds share."""

from __future__ import annotations

import secrets
import uuid
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]
"""A decoded JSON object. The API is open-ended, so inside the server it stays JSON."""

_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_LONGEST_GENERATED_BASE = 58


def metadata(obj: Object) -> Object:
    """Give an object's metadata, made if it has none."""
    return section(obj, "metadata")


def section(obj: Object, name: str) -> Object:
    """Give a part such as spec or status, made if the object has none."""
    found = obj.get(name)
    if not isinstance(found, dict):
        found = obj[name] = {}
    return found


def timestamp(moment: datetime | None = None) -> str:
    """Write a time as metadata does: UTC, whole seconds."""
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_uid() -> str:
    """Make a uid."""
    return str(uuid.uuid4())


def generated_name(base: str) -> str:
    """Make a name from metadata.generateName: the base, cut to fit, and five random letters."""
    suffix = "".join(secrets.choice(_SUFFIX_LETTERS) for _ in range(5))
    return base[:_LONGEST_GENERATED_BASE] + suffix
