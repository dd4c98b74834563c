"""A cluster in miniature: the network, an API server that its nodes reach, and Node objects."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import msgspec

from pyproxy.errors import UsageError
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.client import ApiClient, JsonObject
from pyproxy_lab.modes import NFTABLES, LabMode
from pyproxy_lab.namespace import LabError
from pyproxy_lab.network import Network
from pyproxy_lab.node_exec import NodeExec, agent_pod
from pyproxy_lab.process import Agent, agent_command, socket_of
from pyproxy_lab.relay import relaying
from pyproxy_lab.sync_barrier import SyncBarrier
from pyproxy_lab.topology import API_ADDRESS, TWO_NODES, Site, Topology

_PORTS = {"http": 80, "https": 443}


class Cluster:
    """A context manager: inside it network and API server stand, and know the nodes.

    `folder` is a temporary one, for kubeconfigs and logs. Raises what `Network` and `ApiClient` do.
    """

    network: Network
    client: ApiClient
    folder: Path
    server: ApiServer | None = None
    """The cluster's own API server, None if it uses another one."""

    def __init__(self, topology: Topology = TWO_NODES, *, api: ApiClient | None = None) -> None:
        self._topology = topology
        self._api = api
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pyproxy-")))
            self.network = stack.enter_context(Network(self._topology))
            if self._api is None:
                self.server, self.client = stack.enter_context(_own_api_server(self.network))
                self.server.exec.runner = NodeExec(self.network, self.folder)
            else:
                self.client = self._api
            self._url = self.client.url
            if self._api is not None:
                self._url = stack.enter_context(_relayed(self.network, self._api.url))
            for site in self._topology.sites:
                _register(self.client, site)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def kubeconfig(self) -> Path:
        """Write a kubeconfig for agents on the nodes, and return its path."""
        path = self.folder / "kubeconfig"
        path.write_bytes(msgspec.json.encode(kubeconfig(self._url, self.client.token)))
        return path

    def agent(
        self,
        site_name: str,
        mode: LabMode = NFTABLES,
        log: Path | None = None,
        flags: Sequence[str] = (),
    ) -> Agent:
        """Prepare this pyproxy as the agent of a site; entering it starts it."""
        site = self._topology.site(site_name)
        command = [*agent_command(site, self.kubeconfig(), mode), *flags]
        return Agent(
            self.network.namespace(site_name),
            command,
            log or self.folder / f"agent-{site_name}.log",
        )

    def add_agent_pod(self, site_name: str, **labels: str) -> None:
        """Write the pod of a site's agent, running and ready, as a DaemonSet and a kubelet would.

        `kubectl exec` then runs commands beside the agent that `agent` has started.
        """
        pod = agent_pod(self._topology.site(site_name), labels)
        path = "/api/v1/namespaces/kube-system/pods"
        self.client.ensure(path, pod)
        status = {"status": pod["status"]}
        self.client.patch(f"{path}/{pod['metadata']['name']}/status", status)

    def barrier(self, site_name: str, agent: Agent) -> SyncBarrier:
        """Return a barrier that waits until a site's agent has programmed all writes."""
        return SyncBarrier(self.client, agent, str(socket_of(site_name, self.folder)))

    def pod_runner(self) -> AbstractContextManager[object]:
        """Prepare a kubelet for all nodes, which runs the commands of pods; entering it starts it.

        Raises LabError without an API server of its own.
        """
        from pyproxy_lab.pod_runner import PodRunner  # noqa: PLC0415

        if self.server is None:
            raise LabError("only the lab's own API server runs commands in pods")
        return PodRunner.running(self.client, self.network, self.server.exec)

    def endpoint_slices(self) -> AbstractContextManager[object]:
        """Prepare a controller that makes EndpointSlices of pods; entering it starts it."""
        # The conformance cases write their slices themselves, and need none of it.
        from pyproxy_lab.endpointslice_controller import Controller  # noqa: PLC0415

        return Controller.running(self._url, self.client.token, self.network.api.name)


@contextmanager
def _own_api_server(network: Network) -> Iterator[tuple[ApiServer, ApiClient]]:
    token = secrets.token_hex(16)
    settings = Settings(netns=network.api.name, host=API_ADDRESS, token=token)
    with ApiServer.running(settings) as server:
        yield server, ApiClient(server.url, token, network.api)


@contextmanager
def _relayed(network: Network, url: str) -> Iterator[str]:
    """Relay the nodes' connections to an API server of the machine, and give its URL for them.

    Raises UsageError.
    """
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise UsageError(f"--api {url}: write a URL such as https://127.0.0.1:6443")
    target = (parts.hostname, parts.port or _PORTS[parts.scheme])
    listener = network.listen()
    port = listener.getsockname()[1]
    with relaying(listener, target):
        yield f"{parts.scheme}://{API_ADDRESS}:{port}{parts.path}"


def kubeconfig(url: str, token: str) -> JsonObject:
    """Write what a client of a lab's API server has to know."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": url, "insecure-skip-tls-verify": True}}],
        "users": [{"name": "lab", "user": {"token": token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
    }


def _register(client: ApiClient, site: Site) -> None:
    """Write a site's Node as a kubelet and the node controllers would."""
    networks = list(site.pod_networks)
    labels = {"kubernetes.io/hostname": site.node, "topology.kubernetes.io/zone": site.zone}
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": site.node, "labels": labels},
        "spec": {"podCIDR": networks[0], "podCIDRs": networks},
    }
    addresses = [{"type": "InternalIP", "address": address} for address in site.addresses]
    addresses.append({"type": "Hostname", "address": site.node})
    client.ensure("/api/v1/nodes", node)
    client.patch(f"/api/v1/nodes/{site.node}/status", {"status": {"addresses": addresses}})
