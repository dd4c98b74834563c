"""The objects of a check: its namespace, pods and Services, as decoded JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, TypeAlias

import msgspec

JsonObject: TypeAlias = dict[str, Any]

LABEL = {"app.kubernetes.io/name": "pyproxy-check"}
"""The label of the namespace, by which leftovers of earlier checks are found."""

ROLE = "pyproxy-check/role"
CONTAINER = "check"
PORT = 80
"""The port of every Service."""

TARGET_PORT = 8080
_USER = 65532
"""No user of the node has this id, which images without root use."""

_START = "import json, sys; exec(json.loads(sys.stdin.readline()))"


class Pod(msgspec.Struct, frozen=True):
    """A pod of the check; `server` is the name that it answers with."""

    name: str
    role: str
    node: str
    server: str
    port: int = TARGET_PORT
    host: bool = False
    grace: int = 1


def program() -> str:
    """Return the text of the program in the pods."""
    return files("pyproxy.kubectl.check").joinpath("pod.py").read_text(encoding="utf-8")


def question_command() -> tuple[str, ...]:
    """Return the command of a client, which reads program and question from stdin.

    As an argument the program would make the URL of the exec request too long.
    """
    return ("python3", "-I", "-c", _START, "connect")


def namespace(name: str) -> JsonObject:
    """Return the namespace; pods in the node's network need the level privileged."""
    labels = {**LABEL, "pod-security.kubernetes.io/enforce": "privileged"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def pod(each: Pod, image: str) -> JsonObject:
    """Return a pod, with as few rights as the level restricted permits."""
    container = {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-I", "-c", program(), "serve", each.server, str(each.port)],
        "ports": [{"containerPort": each.port, "protocol": "TCP"}],
        "readinessProbe": {"tcpSocket": {"port": each.port}, "periodSeconds": 1},
        "resources": {
            "requests": {"cpu": "5m", "memory": "16Mi"},
            "limits": {"memory": "128Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": each.name, "labels": {**LABEL, ROLE: each.role}},
        "spec": {
            "nodeName": each.node,
            "hostNetwork": each.host,
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": each.grace,
            "tolerations": [{"operator": "Exists"}],
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "runAsGroup": _USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
        },
    }


def services(host_port: int) -> Sequence[JsonObject]:
    """Return the Services; `host_port` is that of the pods in the nodes' network."""
    node_port = {"type": "NodePort"}
    return (
        _service("cluster", "server", {**node_port, "externalTrafficPolicy": "Cluster"}, udp=True),
        _service("local", "server", {**node_port, "externalTrafficPolicy": "Local"}),
        _service("internal", "server", {"internalTrafficPolicy": "Local"}),
        _service("affinity", "server", {"sessionAffinity": "ClientIP"}),
        _service("empty", "nothing", {}),
        _service("host", "host", {}, target=host_port),
        _service("rollout", "rollout", {}),
    )


def _service(
    name: str, role: str, spec: Mapping[str, object], *, udp: bool = False,
    target: int = TARGET_PORT,
) -> JsonObject:  # fmt: skip
    ports = [
        {"name": protocol.lower(), "port": PORT, "targetPort": target, "protocol": protocol}
        for protocol in (("TCP", "UDP") if udp else ("TCP",))
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": LABEL},
        "spec": {
            "selector": {ROLE: role},
            "ipFamilyPolicy": "PreferDualStack",
            "ports": ports,
            **spec,
        },
    }
