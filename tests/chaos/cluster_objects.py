"""Services and EndpointSlices as JSON, for the lab's API server."""

from __future__ import annotations

from collections.abc import Sequence

from pyproxy.lab.client import ENDPOINT_SLICES, SERVICES, ApiClient, JsonObject, collection

NAMESPACE = "chaos"
PORT, TARGET_PORT = 80, 8080


def service(name: str, address: str, *, node_port: int = 0, affinity: bool = False) -> JsonObject:
    port: JsonObject = {"name": "http", "port": PORT, "targetPort": TARGET_PORT, "protocol": "TCP"}
    spec: JsonObject = {"clusterIP": address, "clusterIPs": [address], "ports": [port]}
    if node_port:
        spec["type"] = "LoadBalancer"
        port["nodePort"] = node_port
    if affinity:
        spec["sessionAffinity"] = "ClientIP"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec,
    }


def endpoint_slice(of: str, addresses: Sequence[str]) -> JsonObject:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{of}-0",
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": of},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": TARGET_PORT, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": [address], "conditions": {"ready": True}} for address in addresses
        ],
    }


def create(client: ApiClient, obj: JsonObject) -> None:
    client.create(collection(NAMESPACE, _kind(obj)), obj)


def replace(client: ApiClient, obj: JsonObject) -> None:
    client.replace(path(obj), obj)


def path(obj: JsonObject) -> str:
    return f"{collection(NAMESPACE, _kind(obj))}/{obj['metadata']['name']}"


def balance(client: ApiClient, name: str, address: str) -> None:
    """Give a Service an address as a load balancer's controller does."""
    status = {"status": {"loadBalancer": {"ingress": [{"ip": address}]}}}
    client.patch(f"{collection(NAMESPACE, SERVICES)}/{name}/status", status)


def _kind(obj: JsonObject) -> str:
    return SERVICES if obj["kind"] == "Service" else ENDPOINT_SLICES
