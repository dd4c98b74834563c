"""Nodes and Namespaces."""

from __future__ import annotations

from pyproxy_lab.apiserver.kinds.addresses import address_family, network_errors
from pyproxy_lab.apiserver.kinds.rules import Rules
from pyproxy_lab.apiserver.names import dns_label_problem
from pyproxy_lab.apiserver.objects import Object, section
from pyproxy_lab.apiserver.status import FieldError, forbidden_field, invalid_value

_NODE_INFO = (
    "machineID", "systemUUID", "bootID", "kernelVersion", "osImage", "containerRuntimeVersion",
    "kubeletVersion", "kubeProxyVersion", "operatingSystem", "architecture",
)  # fmt: skip
_NOT_READY = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}


class NodeRules(Rules):
    """Rules for nodes. A new node keeps the status that its client gives, as a kubelet needs."""

    fields = Rules.fields | {"spec.unschedulable"}

    def reset_status(self, obj: Object) -> None:
        """A new node is tainted until something finds it ready."""
        taints = section(obj, "spec").setdefault("taints", [])
        if not any(taint.get("key") == _NOT_READY["key"] for taint in taints):
            taints.append(dict(_NOT_READY))

    def default(self, obj: Object) -> None:
        """Fill in podCIDR from podCIDRs or the other way round, and the status's fixed parts."""
        spec, status = section(obj, "spec"), section(obj, "status")
        if spec.get("podCIDRs"):
            spec.setdefault("podCIDR", spec["podCIDRs"][0])
        elif spec.get("podCIDR"):
            spec["podCIDRs"] = [spec["podCIDR"]]
        status.setdefault("daemonEndpoints", {}).setdefault("kubeletEndpoint", {"Port": 0})
        info = status.setdefault("nodeInfo", {})
        for name in _NODE_INFO:
            info.setdefault(name, "")

    def errors(self, obj: Object) -> list[FieldError]:
        """Check the pod networks: at most one of each family."""
        networks = obj["spec"].get("podCIDRs") or []
        errors: list[FieldError] = []
        for index, text in enumerate(networks):
            errors += network_errors(text, f"spec.podCIDRs[{index}]")
        families = [address_family(text.partition("/")[0]) for text in networks]
        if not errors and len(set(families)) != len(families):
            detail = "may specify no more than one CIDR for each IP family"
            errors.append(invalid_value("spec.podCIDRs", networks, detail))
        if networks and obj["spec"].get("podCIDR") != networks[0]:
            detail = "must be the first of podCIDRs"
            errors.append(invalid_value("spec.podCIDR", obj["spec"].get("podCIDR"), detail))
        return errors

    def update_errors(self, new: Object, old: Object) -> list[FieldError]:
        """Pod networks stay once they are set."""
        had = old["spec"].get("podCIDRs")
        if had and new["spec"].get("podCIDRs") != had:
            detail = 'node updates may not change podCIDR except from "" to valid'
            return [forbidden_field("spec.podCIDRs", detail)]
        return []

    def selectable(self, obj: Object) -> dict[str, str]:
        """Whether the node takes new pods."""
        return {"spec.unschedulable": str(bool(obj["spec"].get("unschedulable"))).lower()}


class NamespaceRules(Rules):
    """Rules for namespaces."""

    fields = Rules.fields | {"name", "status.phase"}
    returns_deleted = True

    def name_problem(self, name: str) -> str:
        """A namespace's name is a DNS label."""
        return dns_label_problem(name)

    def reset_status(self, obj: Object) -> None:
        """A namespace is active until it is deleted."""
        section(obj, "spec")["finalizers"] = ["kubernetes"]
        obj["status"] = {"phase": "Active"}

    def default(self, obj: Object) -> None:
        """Label it with its own name."""
        meta = obj["metadata"]
        if meta.get("name"):
            meta["labels"] = {**(meta.get("labels") or {}), _NAME_LABEL: meta["name"]}
        section(obj, "status").setdefault("phase", "Active")

    def selectable(self, obj: Object) -> dict[str, str]:
        """The phase, and the name under an old name."""
        return {"name": obj["metadata"]["name"], "status.phase": obj["status"]["phase"]}


_NAME_LABEL = "kubernetes.io/metadata.name"
