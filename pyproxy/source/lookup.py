"""Looking one Service or pod up in the API: what a person looks at, and a proxy never needs.

Lists with a selector are asked for, because the agent's own rights are to list and watch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

import msgspec

from pyproxy.errors import SourceError
from pyproxy.model.objects import ObjectName
from pyproxy.source.api_objects import ApiPod, ApiService, ServiceLookup
from pyproxy.source.client import ApiStatusError, Client

_TIMEOUT = 5.0
_FORBIDDEN = (401, 403)


class _Services(msgspec.Struct):
    items: list[ApiService] | None = None


class _Pods(msgspec.Struct):
    items: list[ApiPod] | None = None


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


L = TypeVar("L", _Services, _Pods, _Slices)


def look_up(client: Client, name: ObjectName) -> ServiceLookup:
    """Ask for a Service and for its pods; whatever goes wrong is part of the answer."""
    try:
        of_name = {"fieldSelector": f"metadata.name={name.name}"}
        services = _list(
            client, f"/api/v1/namespaces/{name.namespace}/services", of_name, _Services
        )
    except ApiStatusError as error:
        return ServiceLookup(service_skipped=_why_not(error), pods_skipped=_why_not(error))
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
        return ServiceLookup(service, pods_skipped=_why_not(error))
    return ServiceLookup(service, tuple(pods.items or ()))


def pod_addresses(client: Client, name: ObjectName) -> tuple[str, ...]:
    """Find the addresses of one pod; none where nobody knows of it. Raises SourceError.

    The agent's own account may not list pods: then the pod's addresses are those that the
    EndpointSlices of its namespace have of it.
    """
    folder = f"namespaces/{name.namespace}"
    of_name = {"fieldSelector": f"metadata.name={name.name}"}
    try:
        pods = _list(client, f"/api/v1/{folder}/pods", of_name, _Pods)
    except ApiStatusError as error:
        if error.status not in _FORBIDDEN:
            raise
        slices = _list(client, f"/apis/discovery.k8s.io/v1/{folder}/endpointslices", {}, _Slices)
        return tuple(dict.fromkeys(_addresses_of(name.name, slices)))
    statuses = [pod.status for pod in pods.items or ()]
    found = [each.ip for status in statuses for each in status.pod_ips or ()]
    return tuple(found or [status.pod_ip for status in statuses if status.pod_ip])


def _addresses_of(pod: str, slices: _Slices) -> Iterator[str]:
    for each in slices.items or ():
        for endpoint in each.endpoints or ():
            of = endpoint.target_ref
            if of is not None and (of.kind, of.name) == ("Pod", pod):
                yield from endpoint.addresses or ()


def _list(client: Client, path: str, query: Mapping[str, str], kind: type[L]) -> L:
    response = client.get(path, query, _TIMEOUT)
    try:
        return msgspec.json.decode(response.read(), type=kind)
    except msgspec.DecodeError as error:
        raise SourceError(f"{path}: what came back is no list of such objects: {error}") from error
    finally:
        response.close()


def _why_not(error: SourceError) -> str:
    if isinstance(error, ApiStatusError) and error.status in _FORBIDDEN:
        return "no permission"
    return str(error)
