"""A cluster in miniature: the network, an API server that its nodes reach, and Node objects."""

from __future__ import annotations

import base64
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
from pyproxy_lab.apiserver.settings import DEFAULT_CLUSTER_IPS, Settings
from pyproxy_lab.client import ApiClient, JsonObject
from pyproxy_lab.modes import NFTABLES, LabMode
from pyproxy_lab.namespace import LabError
from pyproxy_lab.network import Network
from pyproxy_lab.node_exec import NodeExec, agent_pod
from pyproxy_lab.process import Agent, agent_command, socket_of
from pyproxy_lab.relay import relaying
from pyproxy_lab.sync_barrier import SocketMarker, SyncBarrier
from pyproxy_lab.topology import API_ADDRESS, TWO_NODES, Site, Topology

_PORTS = {"http": 80, "https": 443}


class Cluster:
    """A context manager: inside it network and API server stand, and know the nodes.

    `folder` is for kubeconfigs, sockets and logs; without one it is a temporary folder. With
    `secure` its own API server can be reached over TLS too, from the nodes and from the machine.
    Raises what `Network` and `ApiClient` do.
    """

    network: Network
    client: ApiClient
    folder: Path
    url: str
    """The API server's URL for the nodes."""

    server: ApiServer | None = None
    """The cluster's own API server, None if it uses another one."""

    def __init__(
        self,
        topology: Topology = TWO_NODES,
        *,
        api: ApiClient | None = None,
        folder: Path | None = None,
        secure: bool = False,
    ) -> None:
        self._topology = topology
        self._api = api
        self._folder = folder
        self._secure = secure
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.folder = self._folder or Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="pyproxy-"))
            )
            self.network = stack.enter_context(Network(self._topology))
            if self._api is None:
                self.server, self.client = stack.enter_context(
                    _own_api_server(self.network, self._secure)
                )
                self.server.exec.runner = NodeExec(self.network, self.folder)
            else:
                self.client = self._api
            self.url = self.client.url
            if self._api is not None:
                self.url = stack.enter_context(_relayed(self.network, self._api.url))
            for site in self._topology.sites:
                _register(self.client, self._topology, site)
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
        return self._write_kubeconfig("kubeconfig", kubeconfig(self.url, self.client.token))

    def secure_kubeconfig(self) -> Path:
        """Write a kubeconfig for programs that send no token without TLS, and return its path.

        It is that of `kubeconfig` where the cluster is not `secure`, or uses another API server.
        """
        if self.server is None or not self.server.secure_url:
            return self.kubeconfig()
        content = kubeconfig(self.server.secure_url, self.client.token, self.server.ca)
        return self._write_kubeconfig("secure.conf", content)

    def _write_kubeconfig(self, name: str, content: JsonObject) -> Path:
        path = self.folder / name
        # It has the token of an administrator.
        path.touch(0o600)
        path.write_bytes(msgspec.json.encode(content))
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
        networks = self._topology.pod_networks
        command = [*agent_command(site, self.kubeconfig(), mode, networks), *flags]
        return self.program(site_name, command, log)

    def program(self, site_name: str, command: Sequence[str], log: Path | None = None) -> Agent:
        """Prepare any program on a site; entering it starts it."""
        log = log or self.folder / f"agent-{site_name}.log"
        return Agent(self.network.namespace(site_name), command, log)

    def add_agent_pod(self, site_name: str, **labels: str) -> None:
        """Write the pod of a site's agent, running and ready, as a DaemonSet and a kubelet would.

        `kubectl exec` then runs commands beside the agent that `agent` has started.
        """
        site = self._topology.site(site_name)
        pod = agent_pod(site, self._topology.used(site.addresses), labels)
        path = "/api/v1/namespaces/kube-system/pods"
        self.client.ensure(path, pod)
        status = {"status": pod["status"]}
        self.client.patch(f"{path}/{pod['metadata']['name']}/status", status)

    def barrier(self, site_name: str, agent: Agent) -> SyncBarrier:
        """Return a barrier that waits until a site's agent has programmed all writes."""
        return SyncBarrier(self.client, agent, SocketMarker(str(socket_of(site_name, self.folder))))

    def pod_runner(self) -> AbstractContextManager[object]:
        """Prepare a kubelet for all nodes, which runs pods; entering it starts it.

        Raises LabError without an API server of its own.
        """
        from pyproxy_lab.workloads.kubelet import Kubelet  # noqa: PLC0415

        if self.server is None:
            raise LabError("only the lab's own API server runs pods")
        return Kubelet.running(self.server, self.network, self.folder / "pods")

    def controllers(self) -> AbstractContextManager[object]:
        """Prepare the controllers of workloads and a scheduler; entering it starts them."""
        from pyproxy_lab.workloads.controllers import Controllers  # noqa: PLC0415

        return Controllers.running(self.url, self.client.token, self.network.api.name)

    def endpoint_slices(self) -> AbstractContextManager[object]:
        """Prepare a controller that makes EndpointSlices of pods; entering it starts it."""
        # The conformance cases write their slices themselves, and need none of it.
        from pyproxy_lab.endpointslice_controller import Controller  # noqa: PLC0415

        return Controller.running(self.url, self.client.token, self.network.api.name)


@contextmanager
def _own_api_server(network: Network, secure: bool) -> Iterator[tuple[ApiServer, ApiClient]]:
    token = secrets.token_hex(16)
    families = network.topology.families
    settings = Settings(
        netns=network.api.name,
        host=API_ADDRESS,
        token=token,
        secure=secure,
        cluster_ips=tuple(each for each in DEFAULT_CLUSTER_IPS if each.version in families),
    )
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


def kubeconfig(url: str, token: str, ca: bytes = b"") -> JsonObject:
    """Return what a client of a lab's API server has to know; `ca` is its certificate as PEM."""
    cluster: JsonObject = {"server": url, "insecure-skip-tls-verify": True}
    if ca:
        encoded = base64.b64encode(ca).decode()
        cluster = {"server": url, "certificate-authority-data": encoded}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "lab", "user": {"token": token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
    }


def _register(client: ApiClient, topology: Topology, site: Site) -> None:
    """Write a site's Node as a kubelet and the node controllers would."""
    networks = list(topology.used(site.pod_networks))
    labels = {"kubernetes.io/hostname": site.node, "topology.kubernetes.io/zone": site.zone}
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": site.node, "labels": labels},
        "spec": {"podCIDR": networks[0], "podCIDRs": networks},
    }
    addresses = [
        {"type": "InternalIP", "address": address} for address in topology.used(site.addresses)
    ]
    addresses.append({"type": "Hostname", "address": site.node})
    client.ensure("/api/v1/nodes", node)
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
    status = {"addresses": addresses, "conditions": [ready]}
    client.patch(f"/api/v1/nodes/{site.node}/status", {"status": status})
