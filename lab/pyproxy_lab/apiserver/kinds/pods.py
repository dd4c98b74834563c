"""Pods. No kubelet runs them: their status is what a client writes."""

from __future__ import annotations

from pyproxy_lab.apiserver.kinds.addresses import address_errors
from pyproxy_lab.apiserver.kinds.rules import Rules
from pyproxy_lab.apiserver.names import dns_label_problem, port_name_problem
from pyproxy_lab.apiserver.objects import Object, section
from pyproxy_lab.apiserver.status import (
    FieldError,
    duplicate,
    forbidden_field,
    invalid_value,
    required,
    unsupported,
)

_PROTOCOLS = ("SCTP", "TCP", "UDP")
_MUTABLE = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "nodeName")


_IGNORED = (
    ("initContainers", "the lab runs no init containers"),
    ("volumes", "the lab has no volumes: containers share the files of this machine"),
    ("affinity", "the lab's scheduler ignores affinity"),
)


class PodRules(Rules):
    """Rules for pods."""

    returns_deleted = True
    terminates = True
    fields = Rules.fields | {
        "spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName",
        "spec.hostNetwork", "status.phase", "status.podIP", "status.nominatedNodeName",
    }  # fmt: skip

    def reset_status(self, obj: Object) -> None:
        """A new pod waits."""
        obj["status"] = {"phase": "Pending", "qosClass": "BestEffort"}

    def default(self, obj: Object) -> None:
        """Fill in what a pod's spec always has, and podIP from podIPs or the other way round."""
        spec, status = section(obj, "spec"), section(obj, "status")
        spec.setdefault("enableServiceLinks", True)
        default_spec(spec)
        status.setdefault("phase", "Pending")
        if status.get("podIP") and not status.get("podIPs"):
            status["podIPs"] = [{"ip": status["podIP"]}]
        elif status.get("podIPs"):
            status["podIP"] = status["podIPs"][0]["ip"]

    def warnings(self, obj: Object) -> list[str]:
        """Warn about parts of the spec that no kubelet of the lab reads."""
        return spec_warnings(obj["spec"])

    def grace(self, obj: Object) -> int:
        """Return the pod's own grace period. A pod without a node has none."""
        spec = obj["spec"]
        return int(spec["terminationGracePeriodSeconds"]) if spec.get("nodeName") else 0

    def errors(self, obj: Object) -> list[FieldError]:
        """Check containers, their names and ports, and the addresses."""
        errors = spec_errors(obj["spec"], "spec")
        for index, address in enumerate(obj["status"].get("podIPs") or ()):
            errors += address_errors(address.get("ip", ""), f"status.podIPs[{index}].ip")
        return errors

    def update_errors(self, new: Object, old: Object) -> list[FieldError]:
        """A pod's spec stays as it is, images and a few fields aside."""
        if _fixed(new["spec"]) != _fixed(old["spec"]):
            detail = (
                "pod updates may not change fields other than `spec.containers[*].image`,"
                "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` "
                "(only additions to existing tolerations),`spec.terminationGracePeriodSeconds` "
                "(allow it to be set to 1 if it was previously negative)"
            )
            return [forbidden_field("spec", detail)]
        had = old["spec"].get("nodeName")
        if had and new["spec"].get("nodeName") != had:
            return [forbidden_field("spec.nodeName", "pod updates may not change the node")]
        return []

    def selectable(self, obj: Object) -> dict[str, str]:
        """Where it runs, and how it is."""
        spec, status = obj["spec"], obj["status"]
        return {
            "spec.nodeName": spec.get("nodeName", ""),
            "spec.restartPolicy": spec["restartPolicy"],
            "spec.schedulerName": spec["schedulerName"],
            "spec.serviceAccountName": spec.get("serviceAccountName", ""),
            "spec.hostNetwork": str(bool(spec.get("hostNetwork"))).lower(),
            "status.phase": status["phase"],
            "status.podIP": status.get("podIP", ""),
            "status.nominatedNodeName": status.get("nominatedNodeName", ""),
        }


def default_spec(spec: Object) -> None:
    """Fill in what a pod's spec, or that of a pod template, always has."""
    for name, value in (
        ("restartPolicy", "Always"),
        ("terminationGracePeriodSeconds", 30),
        ("dnsPolicy", "ClusterFirst"),
        ("schedulerName", "default-scheduler"),
    ):
        spec.setdefault(name, value)
    spec.setdefault("securityContext", {})
    for container in (*spec.get("containers", ()), *spec.get("initContainers", ())):
        _default_container(container, host_network=bool(spec.get("hostNetwork")))


def spec_warnings(spec: Object) -> list[str]:
    """Return a warning for each part of a pod's spec that the lab ignores."""
    return [text for field, text in _IGNORED if spec.get(field)]


def spec_errors(spec: Object, field: str) -> list[FieldError]:
    """Check the containers of a spec at the path `field`, with their names and ports."""
    errors: list[FieldError] = []
    if not spec.get("containers"):
        errors.append(required(f"{field}.containers"))
    names: set[str] = set()
    for index, container in enumerate(spec.get("containers") or ()):
        errors += _container_errors(container, names, f"{field}.containers[{index}]")
    return errors


def _default_container(container: Object, host_network: bool) -> None:
    container.setdefault("resources", {})
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    image = container.get("image", "")
    latest = image.endswith(":latest") or ":" not in image.rpartition("/")[2]
    container.setdefault("imagePullPolicy", "Always" if latest else "IfNotPresent")
    for port in container.get("ports", ()):
        port.setdefault("protocol", "TCP")
        if host_network and port.get("containerPort"):
            port.setdefault("hostPort", port["containerPort"])


def _container_errors(container: Object, names: set[str], field: str) -> list[FieldError]:
    errors: list[FieldError] = []
    name = container.get("name", "")
    if not name:
        errors.append(required(f"{field}.name"))
    elif problem := dns_label_problem(name):
        errors.append(invalid_value(f"{field}.name", name, problem))
    elif name in names:
        errors.append(duplicate(f"{field}.name", name))
    names.add(name)
    if not container.get("image"):
        errors.append(required(f"{field}.image"))
    port_names: set[str] = set()
    for index, port in enumerate(container.get("ports") or ()):
        errors += _port_errors(port, port_names, f"{field}.ports[{index}]")
    return errors


def _port_errors(port: Object, names: set[str], field: str) -> list[FieldError]:
    errors: list[FieldError] = []
    if name := port.get("name"):
        if problem := port_name_problem(name):
            errors.append(invalid_value(f"{field}.name", name, problem))
        elif name in names:
            errors.append(duplicate(f"{field}.name", name))
        names.add(name)
    number = port.get("containerPort", 0)
    if not number:
        errors.append(required(f"{field}.containerPort"))
    elif not 1 <= number <= 65535:
        message = "must be between 1 and 65535, inclusive"
        errors.append(invalid_value(f"{field}.containerPort", number, message))
    if port["protocol"] not in _PROTOCOLS:
        errors.append(unsupported(f"{field}.protocol", port["protocol"], _PROTOCOLS))
    return errors


def _fixed(spec: Object) -> Object:
    """Return the part of a spec that may not change."""
    fixed = {name: value for name, value in spec.items() if name not in _MUTABLE}
    for name in ("containers", "initContainers"):
        if name in fixed:
            fixed[name] = [
                {k: v for k, v in c.items() if k not in {"image", "imagePullPolicy"}}
                for c in fixed[name]
            ]
    return fixed
