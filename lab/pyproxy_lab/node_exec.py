"""Commands in the pods of agents: processes in the network namespaces of the lab's nodes.

The lab has no containers. An agent's pod shares its node's network, so a command runs in the node's
namespace, with this Python's programs on PATH, and with the agent's socket where a pod has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pyproxy.config import flags
from pyproxy_lab.apiserver.exec import STDERR, STDOUT, Request, StartError, Streams
from pyproxy_lab.client import JsonObject
from pyproxy_lab.network import Network
from pyproxy_lab.process import socket_of
from pyproxy_lab.topology import Site

_LABELS = {"app.kubernetes.io/name": "pyproxy"}
_PART = 1 << 16

# `ip netns exec` has made a mount namespace, so that these mounts are the command's own. A socket
# that does not exist yet cannot be mounted: then no agent listens, as in a pod that starts.
_MOUNT_SOCKET = """
mount -t tmpfs tmpfs /run && mkdir -p "${1%/*}" || exit 125
[ ! -S "$2" ] || { touch "$1" && mount --bind "$2" "$1"; } || exit 125
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
        return await run_command(self._command(site, request.command), streams)

    def _command(self, site: Site, command: tuple[str, ...]) -> list[str]:
        return [
            *("ip", "netns", "exec", self._network.namespace(site.name).name),
            *("sh", "-c", _MOUNT_SOCKET, "sh"),
            *(flags.INSPECT_SOCKET.default, str(socket_of(site.name, self._folder))),
            *command,
        ]


async def run_command(command: Sequence[str], streams: Streams) -> int:
    """Run a program with these streams to its end, and return its exit status."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        start_new_session=True,
    )
    feeding = asyncio.ensure_future(_feed(process, streams))
    try:
        await asyncio.gather(
            _copy(process.stdout, streams, STDOUT), _copy(process.stderr, streams, STDERR)
        )
        return await process.wait()
    finally:
        feeding.cancel()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


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


async def _feed(process: asyncio.subprocess.Process, streams: Streams) -> None:
    """Copy the client's input, and close the command's at its end."""
    if process.stdin is None:
        return
    with contextlib.suppress(ConnectionError):
        while data := await streams.stdin.read(_PART):
            process.stdin.write(data)
            await process.stdin.drain()
    process.stdin.close()


async def _copy(source: asyncio.StreamReader | None, streams: Streams, channel: int) -> None:
    """Copy output until its end. Ends as well once the client has closed the connection."""
    if source is None:
        return
    with contextlib.suppress(ConnectionError):
        while data := await source.read(_PART):
            await streams.write(channel, data)
