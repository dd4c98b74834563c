"""A Service and its pods as in the API, reduced to the fields that `pyproxy explain` shows."""

from __future__ import annotations

import msgspec


class ApiPort(msgspec.Struct, frozen=True, rename="camel"):
    """A port of spec.ports; `target_port` is a number, a name, or None for the value of `port`."""

    name: str | None = None
    protocol: str | None = None
    port: int = 0
    target_port: int | str | None = None
    node_port: int | None = None

    @property
    def target(self) -> int | str:
        """The number or name of the port in a pod."""
        return self.target_port or self.port


class ApiSpec(msgspec.Struct, frozen=True, rename="camel"):
    """The spec of a Service."""

    type: str | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    external_name: str | None = None
    selector: dict[str, str] | None = None
    ports: tuple[ApiPort, ...] | None = None
    ip_families: tuple[str, ...] | None = None


class ApiMeta(msgspec.Struct, frozen=True, rename="camel"):
    """The metadata of an object."""

    name: str = ""
    labels: dict[str, str] | None = None
    deletion_timestamp: str | None = None


class ApiService(msgspec.Struct, frozen=True):
    """A Service, whether pyproxy proxies it or not."""

    metadata: ApiMeta
    spec: ApiSpec = ApiSpec()


class ApiContainerPort(msgspec.Struct, frozen=True, rename="camel"):
    """A port that a container declares."""

    container_port: int = 0
    name: str | None = None
    protocol: str | None = None


class ApiContainer(msgspec.Struct, frozen=True):
    """A container of a pod."""

    name: str = ""
    ports: tuple[ApiContainerPort, ...] | None = None


class ApiPodSpec(msgspec.Struct, frozen=True, rename="camel"):
    """The spec of a pod."""

    node_name: str | None = None
    containers: tuple[ApiContainer, ...] | None = None


class ApiCondition(msgspec.Struct, frozen=True):
    """A condition of a pod."""

    type: str = ""
    status: str = ""
    message: str | None = None


class ApiPodIP(msgspec.Struct, frozen=True):
    """An address of a pod."""

    ip: str = ""


class ApiPodStatus(msgspec.Struct, frozen=True, rename="camel"):
    """The status of a pod."""

    phase: str | None = None
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    pod_ips: tuple[ApiPodIP, ...] | None = msgspec.field(default=None, name="podIPs")
    conditions: tuple[ApiCondition, ...] | None = None


class ApiPod(msgspec.Struct, frozen=True):
    """A pod that a Service selects."""

    metadata: ApiMeta
    spec: ApiPodSpec = ApiPodSpec()
    status: ApiPodStatus = ApiPodStatus()

    @property
    def ready(self) -> bool:
        """Whether its condition Ready is True."""
        return any(c.type == "Ready" and c.status == "True" for c in self.status.conditions or ())

    def declares(self, name: str) -> bool:
        """Return whether a container declares a port of that name."""
        return any(
            port.name == name
            for container in self.spec.containers or ()
            for port in container.ports or ()
        )


class ServiceLookup(msgspec.Struct, frozen=True):
    """A Service and the pods that it selects, as the API server returned them.

    `service` is None if it does not exist or was not requested. `service_skipped` and
    `pods_skipped` are the reasons why a request was not made or was denied, else empty.
    `api_error` is the error if the API server could not be reached, else empty.
    """

    service: ApiService | None = None
    pods: tuple[ApiPod, ...] = ()
    service_skipped: str = ""
    pods_skipped: str = ""
    api_error: str = ""
