"""Look up one Service or pod in the API for `pyproxy explain` and `pyproxy trace`, and Nodes.

Requests are lists with a selector, because the agent's RBAC role allows list and watch only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

import msgspec

from pyproxy.errors import SourceError
from pyproxy.model.objects import ObjectName
from pyproxy.source.api_objects import ApiPod, ApiService, ServiceLookup
from pyproxy.source.client import ApiStatusError, Client
from pyproxy.source.object_lists import read_list

_TIMEOUT = 5.0
_FORBIDDEN = (401, 403)
_MOST_NODES = 500


class _Services(msgspec.Struct):
    items: list[ApiService] | None = None


class _Pods(msgspec.Struct):
    items: list[ApiPod] | None = None


class _Named(msgspec.Struct):
    name: str = ""


class _Node(msgspec.Struct):
    metadata: _Named


class _Nodes(msgspec.Struct):
    items: list[_Node] | None = None


class _Reference(msgspec.Struct):
    kind: str | None = None
    name: str | None = None


class _Endpoint(msgspec.Struct, rename="camel"):
    addresses: list[str] | None = None
    target_ref: _Reference | None = None


class _Slice(msgspec.Struct):
    endpoints: list[_Endpoint] | None = None


class _Slices(msgspec.Struct):
    items: list[_Slice] | None = None


L = TypeVar("L", _Services, _Pods, _Slices, _Nodes)


def look_up(client: Client, name: ObjectName) -> ServiceLookup:
    """Request a Service and its pods. Blocks; raises nothing: errors are part of the result."""
    try:
        by_name = {"fieldSelector": f"metadata.name={name.name}"}
        services = _list(
            client, f"/api/v1/namespaces/{name.namespace}/services", by_name, _Services
        )
    except ApiStatusError as error:
        return ServiceLookup(service_skipped=_skip_reason(error), pods_skipped=_skip_reason(error))
    except SourceError as error:
        return ServiceLookup(api_error=str(error))
    service = next(iter(services.items or ()), None)
    selector = (service.spec.selector if service else None) or {}
    if not selector:
        return ServiceLookup(service)
    try:
        chosen = {"labelSelector": ",".join(f"{key}={value}" for key, value in selector.items())}
        pods = _list(client, f"/api/v1/namespaces/{name.namespace}/pods", chosen, _Pods)
    except SourceError as error:
        return ServiceLookup(service, pods_skipped=_skip_reason(error))
    return ServiceLookup(service, tuple(pods.items or ()))


def pod_addresses(client: Client, name: ObjectName) -> tuple[str, ...]:
    """Return the addresses of one pod, empty if it does not exist. Raises SourceError.

    The agent's RBAC role may not list pods. Then the addresses come from the EndpointSlices of the
    pod's namespace.
    """
    folder = f"namespaces/{name.namespace}"
    by_name = {"fieldSelector": f"metadata.name={name.name}"}
    try:
        pods = _list(client, f"/api/v1/{folder}/pods", by_name, _Pods)
    except ApiStatusError as error:
        if error.status not in _FORBIDDEN:
            raise
        slices = _list(client, f"/apis/discovery.k8s.io/v1/{folder}/endpointslices", {}, _Slices)
        return tuple(dict.fromkeys(_addresses_of(name.name, slices)))
    statuses = [pod.status for pod in pods.items or ()]
    # podIPs has both families of a dual-stack pod; podIP is the first of them.
    addresses = [each.ip for status in statuses for each in status.pod_ips or ()]
    return tuple(addresses or [status.pod_ip for status in statuses if status.pod_ip])


def node_names(client: Client) -> tuple[str, ...]:
    """Return the names of Nodes, of at most 500. Blocks for a request. Raises SourceError."""
    found = _list(client, "/api/v1/nodes", {"limit": str(_MOST_NODES)}, _Nodes)
    return tuple(each.metadata.name for each in (found.items or ())[:_MOST_NODES])


def _addresses_of(pod: str, slices: _Slices) -> Iterator[str]:
    for each in slices.items or ():
        for endpoint in each.endpoints or ():
            target = endpoint.target_ref
            if target is not None and (target.kind, target.name) == ("Pod", pod):
                yield from endpoint.addresses or ()


def _list(client: Client, path: str, query: Mapping[str, str], kind: type[L]) -> L:
    return read_list(client, path, query, kind, _TIMEOUT)


def _skip_reason(error: SourceError) -> str:
    if isinstance(error, ApiStatusError) and error.status in _FORBIDDEN:
        return "no permission"
    return str(error)
