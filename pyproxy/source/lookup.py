"""Looking one Service or pod up in the API: what a person looks at, and a proxy never needs.

Lists with a selector are asked for, because the agent's own rights are to list and watch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

import msgspec

from pyproxy.errors import SourceError
from pyproxy.model.objects import ObjectName
from pyproxy.source.client import Client, RefusedError

_TIMEOUT = 5.0
_FORBIDDEN = (401, 403)


class FoundPort(msgspec.Struct, frozen=True, rename="camel"):
    """A port of spec.ports; `target_port` is a number, a name, or None where `port` is meant."""

    name: str | None = None
    protocol: str | None = None
    port: int = 0
    target_port: int | str | None = None
    node_port: int | None = None

    @property
    def target(self) -> int | str:
        """Where the port leads in a pod."""
        return self.target_port or self.port


class FoundSpec(msgspec.Struct, frozen=True, rename="camel"):
    """A Service's spec, as far as it explains something."""

    type: str | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    external_name: str | None = None
    selector: dict[str, str] | None = None
    ports: tuple[FoundPort, ...] | None = None
    ip_families: tuple[str, ...] | None = None


class FoundMeta(msgspec.Struct, frozen=True, rename="camel"):
    """An object's metadata."""

    name: str = ""
    labels: dict[str, str] | None = None
    deletion_timestamp: str | None = None


class FoundService(msgspec.Struct, frozen=True):
    """A Service as the API has it, whoever's it is."""

    metadata: FoundMeta
    spec: FoundSpec = FoundSpec()


class FoundContainerPort(msgspec.Struct, frozen=True, rename="camel"):
    """A port that a container declares."""

    container_port: int = 0
    name: str | None = None
    protocol: str | None = None


class FoundContainer(msgspec.Struct, frozen=True):
    """A container of a pod."""

    name: str = ""
    ports: tuple[FoundContainerPort, ...] | None = None


class FoundPodSpec(msgspec.Struct, frozen=True, rename="camel"):
    """A pod's spec."""

    node_name: str | None = None
    containers: tuple[FoundContainer, ...] | None = None


class FoundCondition(msgspec.Struct, frozen=True):
    """A pod's condition."""

    type: str = ""
    status: str = ""
    message: str | None = None


class FoundPodIP(msgspec.Struct, frozen=True):
    """One of a pod's addresses."""

    ip: str = ""


class FoundPodStatus(msgspec.Struct, frozen=True, rename="camel"):
    """A pod's status."""

    phase: str | None = None
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    pod_ips: tuple[FoundPodIP, ...] | None = msgspec.field(default=None, name="podIPs")
    conditions: tuple[FoundCondition, ...] | None = None


class FoundPod(msgspec.Struct, frozen=True):
    """A pod that a Service selects."""

    metadata: FoundMeta
    spec: FoundPodSpec = FoundPodSpec()
    status: FoundPodStatus = FoundPodStatus()

    @property
    def ready(self) -> bool:
        """Whether its readiness probes have passed."""
        return any(c.type == "Ready" and c.status == "True" for c in self.status.conditions or ())

    def declares(self, name: str) -> bool:
        """Whether a container has a port of that name."""
        return any(
            port.name == name
            for container in self.spec.containers or ()
            for port in container.ports or ()
        )


class Lookup(msgspec.Struct, frozen=True):
    """What the API says of a Service and the pods that it selects.

    `service` is None where there is none, or where it was not asked for. The texts say why
    something was not asked: no right to, or no API server. They are empty where it was. Where
    `unreachable` is not empty the API server did not answer.
    """

    service: FoundService | None = None
    pods: tuple[FoundPod, ...] = ()
    service_not_asked: str = ""
    pods_not_asked: str = ""
    unreachable: str = ""


class _Services(msgspec.Struct):
    items: list[FoundService] | None = None


class _Pods(msgspec.Struct):
    items: list[FoundPod] | None = None


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


def look_up(client: Client, name: ObjectName) -> Lookup:
    """Ask for a Service and for its pods; whatever goes wrong is part of the answer."""
    try:
        of_name = {"fieldSelector": f"metadata.name={name.name}"}
        services = _list(
            client, f"/api/v1/namespaces/{name.namespace}/services", of_name, _Services
        )
    except RefusedError as error:
        return Lookup(service_not_asked=_why_not(error), pods_not_asked=_why_not(error))
    except SourceError as error:
        return Lookup(unreachable=str(error))
    service = next(iter(services.items or ()), None)
    selector = (service.spec.selector if service else None) or {}
    if not selector:
        return Lookup(service)
    try:
        chosen = {"labelSelector": ",".join(f"{key}={value}" for key, value in selector.items())}
        pods = _list(client, f"/api/v1/namespaces/{name.namespace}/pods", chosen, _Pods)
    except SourceError as error:
        return Lookup(service, pods_not_asked=_why_not(error))
    return Lookup(service, tuple(pods.items or ()))


def pod_addresses(client: Client, name: ObjectName) -> tuple[str, ...]:
    """Find the addresses of one pod; none where nobody knows of it. Raises SourceError.

    The agent's own account may not list pods: then the pod's addresses are those that the
    EndpointSlices of its namespace have of it.
    """
    folder = f"namespaces/{name.namespace}"
    of_name = {"fieldSelector": f"metadata.name={name.name}"}
    try:
        pods = _list(client, f"/api/v1/{folder}/pods", of_name, _Pods)
    except RefusedError as error:
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
    if isinstance(error, RefusedError) and error.status in _FORBIDDEN:
        return "no permission"
    return str(error)
