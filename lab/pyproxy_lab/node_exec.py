"""Commands in the pods of agents: processes in the network namespaces of the lab's nodes.

The lab has no containers. An agent's pod shares its node's network, so a command runs in the node's
namespace, with this Python's programs on PATH, and with the agent's socket where a pod has it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from pyproxy.config import flags
from pyproxy_lab.apiserver.exec import Request, StartError, Streams
from pyproxy_lab.client import JsonObject
from pyproxy_lab.network import Network
from pyproxy_lab.process import socket_of
from pyproxy_lab.topology import Site
from pyproxy_lab.workloads import terminal

_LABELS = {"app.kubernetes.io/name": "pyproxy"}

# `ip netns exec` has made a mount namespace, so that these mounts are the command's own. A socket
# that does not exist yet cannot be mounted: then no agent listens, as in a pod that starts.
# The lab's folder, with kubeconfigs, may be below /run, which the first mount hides: the working
# directory still reaches it.
_MOUNT_SOCKET = """
(
    cd "${2%/*}" && mount -t tmpfs tmpfs /run && mkdir -p "${1%/*}" "${2%/*}" || exit
    mount -c --bind . "${2%/*}" || exit
    [ ! -S "$2" ] || { touch "$1" && mount --bind "$2" "$1"; }
) || exit 125
shift 2
exec "$@"
"""


class NodeExec:
    """A runner of the API server: finds the node of a pod, and runs the command there.

    `folder` has the agents' sockets.
    """

    def __init__(self, network: Network, folder: Path) -> None:
        self._sites = {site.node: site for site in network.topology.sites}
        self._network = network
        self._folder = folder

    async def __call__(self, request: Request, streams: Streams) -> int:
        """Run a command to its end, and return its exit status. Raises StartError."""
        site = self._sites.get(request.pod["spec"]["nodeName"])
        if site is None:
            raise StartError(f"container not found ({request.container!r})")
        if request.tty:
            raise StartError("the lab has no terminals")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        command = self._command(site, request.command)
        return await terminal.run(command, streams, os.environ | {"PATH": path}, tty=False)

    def _command(self, site: Site, command: tuple[str, ...]) -> list[str]:
        return [
            *("ip", "netns", "exec", self._network.namespace(site.name).name),
            *("sh", "-c", _MOUNT_SOCKET, "sh"),
            *(flags.INSPECT_SOCKET.default, str(socket_of(site.name, self._folder))),
            *command,
        ]


MIRROR = "kubernetes.io/config.mirror"
"""The annotation of static pods, which a kubelet shows in the API but does not take from there."""


def agent_pod(site: Site, addresses: Iterable[str], labels: Mapping[str, str]) -> JsonObject:
    """Return the pod of a site's agent; `labels` are added to those of deploy/."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"pyproxy-{site.name}",
            "namespace": "kube-system",
            "labels": {**_LABELS, **labels},
            "annotations": {MIRROR: site.name},
        },
        "spec": {
            "nodeName": site.node,
            "hostNetwork": True,
            "containers": [{"name": "pyproxy", "image": "pyproxy:0.1.0"}],
        },
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": address} for address in addresses],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
