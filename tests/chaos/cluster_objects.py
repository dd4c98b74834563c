"""Services and EndpointSlices in the API server of a lab's cluster."""

from __future__ import annotations

from pyproxy_lab.client import ENDPOINT_SLICES, SERVICES, ApiClient, JsonObject, collection

from tests.agent.live import SHOP

KINDS = {"Service": SERVICES, "EndpointSlice": ENDPOINT_SLICES}


def create(client: ApiClient, *objects: JsonObject) -> None:
    """Make objects in their namespace, and that one where it is not there yet."""
    client.ensure("/api/v1/namespaces", {"metadata": {"name": SHOP}})
    for obj in objects:
        client.create(collection(SHOP, KINDS[obj["kind"]]), obj)


def balance(client: ApiClient, name: str, address: str) -> None:
    """Give a Service an address as a load balancer's controller does."""
    status = {"status": {"loadBalancer": {"ingress": [{"ip": address}]}}}
    client.patch(f"{collection(SHOP, SERVICES)}/{name}/status", status)
