"""The lab's kubelet: pods that are both in the network and in the API."""

from __future__ import annotations

import time
from collections.abc import Mapping

from pyproxy_lab.client import PODS, ApiClient, JsonObject, collection
from pyproxy_lab.network import Network
from pyproxy_lab.topology import Pod


class Kubelet:
    """Starts and stops the pods of one namespace, and writes their objects to the API."""

    def __init__(self, client: ApiClient, network: Network, namespace: str) -> None:
        self._client = client
        self._network = network
        self._path = collection(namespace, PODS)

    def start(self, pod: Pod, labels: Mapping[str, str]) -> None:
        """Start a pod, and set it ready once it responds."""
        node = self._network.topology.site(pod.site).node
        ports = [{"name": f"port-{port}", "containerPort": port} for port in pod.ports]
        self._client.create(
            self._path,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": pod.name, "labels": dict(labels)},
                "spec": {
                    "nodeName": node,
                    "containers": [{"name": "echo", "image": "echo:1", "ports": ports}],
                },
            },
        )
        self._network.add_pod(pod)
        addresses = [{"ip": address} for address in pod.addresses]
        self._status(
            pod.name, {"phase": "Running", "podIP": addresses[0]["ip"], "podIPs": addresses}
        )
        self.set_ready(pod.name, ready=True)

    def set_ready(self, name: str, *, ready: bool) -> None:
        """Set the pod's Ready condition."""
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        status = "True" if ready else "False"
        condition = {"type": "Ready", "status": status, "lastTransitionTime": since}
        self._status(name, {"conditions": [condition]})

    def set_labels(self, name: str, labels: Mapping[str, str]) -> None:
        """Change a pod's labels."""
        self._client.patch(f"{self._path}/{name}", {"metadata": {"labels": dict(labels)}})

    def terminate(self, name: str) -> None:
        """Delete a pod as `kubectl delete pod` does: it responds until `stop`."""
        self._client.delete(f"{self._path}/{name}")

    def stop(self, name: str) -> None:
        """Stop a terminating pod and delete its object."""
        self._network.remove_pod(name)
        self._client.delete(f"{self._path}/{name}", now=True)

    def _status(self, name: str, status: JsonObject) -> None:
        self._client.patch(f"{self._path}/{name}/status", {"status": status})
