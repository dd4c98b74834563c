"""Services by number in the memory of the lab's API server, each with one slice."""

from __future__ import annotations

from collections.abc import Iterable

from pyproxy_lab.apiserver.registry import Deletion, Registry
from pyproxy_lab.apiserver.resources import ENDPOINT_SLICES, SERVICES

from tests.agent import live
from tests.agent.live import SHOP, Object


def service(number: int) -> Object:
    return live.service(f"s{number}", f"10.96.{number // 250 + 1}.{number % 250 + 1}")


def endpoint_slice(number: int, pods: Iterable[int]) -> Object:
    """The slice of a Service, with pods of this node by the last number of their address."""
    return live.endpoint_slice(f"s{number}", [f"10.244.1.{pod}" for pod in pods])


def remove(registry: Registry, number: int) -> None:
    """Take a Service and its slice away, within `ApiServer.call`."""
    for resource, name in ((SERVICES, f"s{number}"), (ENDPOINT_SLICES, f"s{number}-1")):
        registry.delete(resource, registry.find(resource, SHOP, name), Deletion())
