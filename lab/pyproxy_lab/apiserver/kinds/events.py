"""Events, which two API groups show in two forms. They are kept as core/v1 has them."""

from __future__ import annotations

from pyproxy_lab.apiserver.kinds.rules import Rules
from pyproxy_lab.apiserver.names import dns_subdomain_problem
from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.resources import EVENTS
from pyproxy_lab.apiserver.status import FieldError, invalid_value, required, unsupported

_CORE_TO_EVENTS = {
    "involvedObject": "regarding",
    "message": "note",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
    "reportingComponent": "reportingController",
}
_EVENTS_TO_CORE = {new: old for old, new in _CORE_TO_EVENTS.items()}
_INVOLVED = ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")


class EventRules(Rules):
    """Rules for events."""

    creates_on_update = True
    fields = Rules.fields | {
        "reason", "reportingComponent", "source", "type",
        *(f"involvedObject.{name}" for name in _INVOLVED),
    }  # fmt: skip

    def name_problem(self, name: str) -> str:
        """An event's name is a DNS subdomain."""
        return dns_subdomain_problem(name)

    def default(self, obj: Object) -> None:
        """Show the fields that an Event always shows."""
        for name in ("involvedObject", "source"):
            obj[name] = obj.get(name) or {}
        for name in ("firstTimestamp", "lastTimestamp", "eventTime"):
            obj.setdefault(name, None)
        for name in ("reportingComponent", "reportingInstance"):
            obj.setdefault(name, "")

    def errors(self, obj: Object) -> list[FieldError]:
        """Check that it lies in its object's namespace, and what a new form of event must say."""
        errors: list[FieldError] = []
        about, home = obj["involvedObject"].get("namespace", ""), obj["metadata"].get("namespace")
        if about != home and (about or home != "default"):
            detail = "does not match event.namespace"
            errors.append(invalid_value("involvedObject.namespace", about, detail))
        if obj["eventTime"] is None:
            return errors
        for field, name in (
            ("reportingController", "reportingComponent"),
            ("reportingInstance", "reportingInstance"),
            ("action", "action"),
            ("reason", "reason"),
        ):
            if not obj.get(name):
                errors.append(required(field))
        if obj.get("type") not in {"Normal", "Warning"}:
            errors.append(unsupported("type", obj.get("type", ""), ("Normal", "Warning")))
        return errors

    def selectable(self, obj: Object) -> dict[str, str]:
        """The object that it is about, its reason and type."""
        involved = obj["involvedObject"]
        source = obj["source"].get("component") or obj["reportingComponent"]
        return {
            **{f"involvedObject.{name}": involved.get(name, "") for name in _INVOLVED},
            "reason": obj.get("reason", ""),
            "reportingComponent": obj["reportingComponent"],
            "source": source,
            "type": obj.get("type", ""),
        }


def to_core(obj: Object) -> Object:
    """Turn an events.k8s.io/v1 Event into the form in which it is kept."""
    return {_EVENTS_TO_CORE.get(name, name): value for name, value in obj.items()}


def to_events(obj: Object) -> Object:
    """Turn an Event as it is kept into events.k8s.io/v1's form."""
    shown = {_CORE_TO_EVENTS.get(name, name): value for name, value in obj.items()}
    shown["apiVersion"] = EVENTS.api_version
    return shown
