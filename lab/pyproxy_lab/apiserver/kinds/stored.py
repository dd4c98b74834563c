"""Kinds that are stored and used by nothing: ConfigMaps, Secrets, ServiceAccounts, Endpoints."""

from __future__ import annotations

import base64
import binascii

from pyproxy_lab.apiserver.kinds.rules import Rules, unchanged_errors
from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.status import FieldError, forbidden_field, invalid_value


class ConfigMapRules(Rules):
    """Rules for ConfigMaps."""

    def update_errors(self, new: Object, old: Object) -> list[FieldError]:
        """An immutable one stays as it is."""
        return _immutable_errors(new, old)


class SecretRules(Rules):
    """Rules for Secrets."""

    fields = Rules.fields | {"type"}

    def default(self, obj: Object) -> None:
        """Encode stringData into data."""
        obj.setdefault("type", "Opaque")
        if plain := obj.pop("stringData", None):
            encoded = {
                name: base64.b64encode(text.encode()).decode() for name, text in plain.items()
            }
            obj["data"] = {**(obj.get("data") or {}), **encoded}

    def errors(self, obj: Object) -> list[FieldError]:
        """Check that the data are base64. The error does not quote them."""
        errors = []
        for name, text in (obj.get("data") or {}).items():
            try:
                base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                errors.append(invalid_value(f"data[{name}]", "<hidden>", "must be base64"))
        return errors

    def update_errors(self, new: Object, old: Object) -> list[FieldError]:
        """The type stays, and all of an immutable one."""
        return unchanged_errors(new, old, "type") + _immutable_errors(new, old)

    def selectable(self, obj: Object) -> dict[str, str]:
        """The type."""
        return {"type": obj["type"]}


class EndpointsRules(Rules):
    """Rules for Endpoints."""

    creates_on_update = True

    def default(self, obj: Object) -> None:
        """A port's protocol is TCP."""
        for subset in obj.get("subsets") or ():
            for port in subset.get("ports") or ():
                port.setdefault("protocol", "TCP")


def _immutable_errors(new: Object, old: Object) -> list[FieldError]:
    if not old.get("immutable"):
        return []
    return [
        forbidden_field(field, "field is immutable when `immutable` is set")
        for field in ("immutable", "data", "binaryData")
        if new.get(field) != old.get(field)
    ]
