"""Objects for an API server: numbered Services in its memory, any objects through its client."""

from __future__ import annotations

from collections.abc import Iterable

from pyproxy_lab.apiserver.registry import Deletion, Registry
from pyproxy_lab.apiserver.resources import ENDPOINT_SLICES, SERVICES
from pyproxy_lab.client import ENDPOINT_SLICES as SLICES_PATH
from pyproxy_lab.client import SERVICES as SERVICES_PATH
from pyproxy_lab.client import ApiClient, JsonObject, collection

from tests.agent import live
from tests.agent.live import SHOP, Object

PATHS = {"Service": SERVICES_PATH, "EndpointSlice": SLICES_PATH}


def numbered_service(number: int) -> Object:
    """Return Service `sNUMBER`, with a cluster IP of its own."""
    return live.service(f"s{number}", f"10.96.{number // 250 + 1}.{number % 250 + 1}")


def numbered_slice(number: int, pods: Iterable[int]) -> Object:
    """Return the slice of a numbered Service; `pods` are last octets of this node's pods."""
    return live.endpoint_slice(f"s{number}", [f"10.244.1.{pod}" for pod in pods])


def delete_numbered(registry: Registry, number: int) -> None:
    """Delete a numbered Service and its slice; call it within `ApiServer.call`."""
    for resource, name in ((SERVICES, f"s{number}"), (ENDPOINT_SLICES, f"s{number}-1")):
        registry.delete(resource, registry.find(resource, SHOP, name), Deletion())


def create(client: ApiClient, *objects: JsonObject) -> None:
    """Create objects, and their namespace where it does not exist."""
    client.ensure("/api/v1/namespaces", {"metadata": {"name": SHOP}})
    for obj in objects:
        client.create(collection(SHOP, PATHS[obj["kind"]]), obj)


def set_ingress(client: ApiClient, name: str, address: str) -> None:
    """Set the load balancer's address in a Service's status."""
    status = {"status": {"loadBalancer": {"ingress": [{"ip": address}]}}}
    client.patch(f"{collection(SHOP, SERVICES_PATH)}/{name}/status", status)
