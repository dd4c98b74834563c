"""Deployments, ReplicaSets, StatefulSets, DaemonSets and ControllerRevisions."""

from __future__ import annotations

from typing import ClassVar

from pyproxy_lab.apiserver.kinds.pods import default_spec, spec_errors, spec_warnings
from pyproxy_lab.apiserver.kinds.rules import Rules, unchanged_errors
from pyproxy_lab.apiserver.names import dns_label_problem, labels_errors
from pyproxy_lab.apiserver.objects import Object, section
from pyproxy_lab.apiserver.selectors import label_selector_matches
from pyproxy_lab.apiserver.status import FieldError, invalid_value, required, unsupported

_QUARTER = "25%"


class WorkloadRules(Rules):
    """The rules that all kinds with a selector and a pod template share."""

    has_generation = True
    defaults: ClassVar[Object] = {}
    """The fields of the spec that are filled in where they are missing."""

    def reset_status(self, obj: Object) -> None:
        """A controller writes the status."""
        obj["status"] = {}

    def default(self, obj: Object) -> None:
        """Fill in the kind's defaults and those of the pods' spec."""
        spec = section(obj, "spec")
        for name, value in self.defaults.items():
            spec.setdefault(name, value)
        template = section(spec, "template")
        section(template, "metadata")
        default_spec(section(template, "spec"))
        section(obj, "status")

    def errors(self, obj: Object) -> list[FieldError]:
        """Check the selector, which must select the template's pods, and the template."""
        spec = obj["spec"]
        template = spec["template"]
        labels = template["metadata"].get("labels") or {}
        errors: list[FieldError] = []
        if not spec.get("selector"):
            errors.append(required("spec.selector"))
        elif not label_selector_matches(spec["selector"], labels):
            detail = "`selector` does not match template `labels`"
            errors.append(invalid_value("spec.template.metadata.labels", labels, detail))
        if spec.get("replicas", 0) < 0:
            detail = "must be greater than or equal to 0"
            errors.append(invalid_value("spec.replicas", spec["replicas"], detail))
        errors += labels_errors(labels, "spec.template.labels")
        errors += spec_errors(template["spec"], "spec.template.spec")
        if template["spec"]["restartPolicy"] != "Always":
            policy = template["spec"]["restartPolicy"]
            errors.append(unsupported("spec.template.spec.restartPolicy", policy, ("Always",)))
        return errors

    def warnings(self, obj: Object) -> list[str]:
        """Warn about parts of the pods' spec that no kubelet of the lab reads."""
        return spec_warnings(obj["spec"]["template"]["spec"])

    def update_errors(self, new: Object, old: Object) -> list[FieldError]:
        """A selector stays as it is."""
        return unchanged_errors(new, old, "spec.selector")


class DeploymentRules(WorkloadRules):
    """Rules for Deployments."""

    defaults: ClassVar[Object] = {
        "replicas": 1,
        "revisionHistoryLimit": 10,
        "progressDeadlineSeconds": 600,
    }

    def default(self, obj: Object) -> None:
        """Fill in the strategy too: a rolling update by a quarter."""
        super().default(obj)
        quarters = {"maxSurge": _QUARTER, "maxUnavailable": _QUARTER}
        _default_rolling_update(section(obj["spec"], "strategy"), quarters)

    def errors(self, obj: Object) -> list[FieldError]:
        """Check the strategy too."""
        strategy = obj["spec"]["strategy"]
        errors = super().errors(obj)
        known = ("Recreate", "RollingUpdate")
        if strategy["type"] not in known:
            errors.append(unsupported("spec.strategy.type", strategy["type"], known))
        elif strategy["type"] == "RollingUpdate":
            errors += _rolling_errors(strategy["rollingUpdate"], "spec.strategy.rollingUpdate")
        return errors


class ReplicaSetRules(WorkloadRules):
    """Rules for ReplicaSets."""

    defaults: ClassVar[Object] = {"replicas": 1}

    def reset_status(self, obj: Object) -> None:
        """A ReplicaSet always shows how many pods it has."""
        obj["status"] = {"replicas": 0}


class StatefulSetRules(WorkloadRules):
    """Rules for StatefulSets."""

    defaults: ClassVar[Object] = {
        "replicas": 1,
        "revisionHistoryLimit": 10,
        "podManagementPolicy": "OrderedReady",
    }

    def name_problem(self, name: str) -> str:
        """Its pods' names begin with the name of a StatefulSet, and are DNS labels."""
        return dns_label_problem(name)

    def reset_status(self, obj: Object) -> None:
        """A StatefulSet always shows how many pods it has."""
        obj["status"] = {"replicas": 0, "availableReplicas": 0}

    def default(self, obj: Object) -> None:
        """Fill in the update strategy too: all ordinals from 0 on."""
        super().default(obj)
        _default_rolling_update(section(obj["spec"], "updateStrategy"), {"partition": 0})

    def update_errors(self, new: Object, old: Object) -> list[FieldError]:
        """The service name, the claims and the order stay too."""
        errors = super().update_errors(new, old)
        for field in ("serviceName", "volumeClaimTemplates", "podManagementPolicy"):
            errors += unchanged_errors(new, old, f"spec.{field}")
        return errors

    def warnings(self, obj: Object) -> list[str]:
        """Warn about claims."""
        if obj["spec"].get("volumeClaimTemplates"):
            return [*super().warnings(obj), "the lab has no volumes: it makes no claims for pods"]
        return super().warnings(obj)


class DaemonSetRules(WorkloadRules):
    """Rules for DaemonSets."""

    defaults: ClassVar[Object] = {"revisionHistoryLimit": 10}

    def reset_status(self, obj: Object) -> None:
        """A DaemonSet always shows these numbers."""
        obj["status"] = {
            "currentNumberScheduled": 0,
            "numberMisscheduled": 0,
            "desiredNumberScheduled": 0,
            "numberReady": 0,
        }

    def default(self, obj: Object) -> None:
        """Fill in the update strategy too: one node after the other."""
        super().default(obj)
        one = {"maxSurge": 0, "maxUnavailable": 1}
        _default_rolling_update(section(obj["spec"], "updateStrategy"), one)


class RevisionRules(Rules):
    """Rules for ControllerRevisions, whose data does not change."""

    def update_errors(self, new: Object, old: Object) -> list[FieldError]:
        """The data stay as they are."""
        return unchanged_errors(new, old, "data")


def _default_rolling_update(strategy: Object, defaults: Object) -> None:
    """Make a strategy a rolling update unless it names another, and fill in its parameters."""
    if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
        rolling = section(strategy, "rollingUpdate")
        for name, value in defaults.items():
            rolling.setdefault(name, value)


def _rolling_errors(rolling: Object, field: str) -> list[FieldError]:
    errors: list[FieldError] = []
    numbers = []
    for name in ("maxUnavailable", "maxSurge"):
        value = rolling[name]
        text = str(value).removesuffix("%")
        if not text.isascii() or not text.isdigit() or (isinstance(value, str) and text == value):
            detail = "a valid percent string must be a numeric string followed by an ending '%'"
            errors.append(invalid_value(f"{field}.{name}", value, detail))
        else:
            numbers.append(int(text))
    if not errors and not any(numbers):
        detail = "may not be 0 when `maxSurge` is 0"
        errors.append(invalid_value(f"{field}.maxUnavailable", rolling["maxUnavailable"], detail))
    return errors
