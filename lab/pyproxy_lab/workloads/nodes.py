"""The writes of a kubelet that starts, about its node. Nothing here does I/O to the API."""

from __future__ import annotations

import os
import platform

from pyproxy_lab.apiserver.objects import timestamp
from pyproxy_lab.workloads.plan import Write

_PODS = "150"


def registration(name: str) -> list[Write]:
    """Return the writes that make a node ready, and take the taint of new nodes away."""
    now = timestamp()
    machine = os.uname()
    capacity = {"cpu": str(os.cpu_count() or 1), "pods": _PODS}
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "KubeletReady",
        "message": "kubelet is posting ready status",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
    status = {
        "conditions": [ready],
        "capacity": capacity,
        "allocatable": capacity,
        "nodeInfo": {
            "kernelVersion": machine.release,
            "osImage": "pyproxy lab",
            "containerRuntimeVersion": "netns://1",
            "kubeletVersion": "v1.36.2",
            "operatingSystem": "linux",
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(
                platform.machine(), platform.machine()
            ),
        },
    }
    path = f"/api/v1/nodes/{name}"
    return [
        Write("PATCH", "nodes", path, {"spec": {"taints": None}}),
        Write("PATCH", "nodes", f"{path}/status", {"status": status}),
    ]
