"""A Service and its pods as the API has them, as far as they explain something: values alone."""

from __future__ import annotations

import msgspec


class ApiPort(msgspec.Struct, frozen=True, rename="camel"):
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


class ApiSpec(msgspec.Struct, frozen=True, rename="camel"):
    """A Service's spec, as far as it explains something."""

    type: str | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    external_name: str | None = None
    selector: dict[str, str] | None = None
    ports: tuple[ApiPort, ...] | None = None
    ip_families: tuple[str, ...] | None = None


class ApiMeta(msgspec.Struct, frozen=True, rename="camel"):
    """An object's metadata."""

    name: str = ""
    labels: dict[str, str] | None = None
    deletion_timestamp: str | None = None


class ApiService(msgspec.Struct, frozen=True):
    """A Service as the API has it, whoever's it is."""

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
    """A pod's spec."""

    node_name: str | None = None
    containers: tuple[ApiContainer, ...] | None = None


class ApiCondition(msgspec.Struct, frozen=True):
    """A pod's condition."""

    type: str = ""
    status: str = ""
    message: str | None = None


class ApiPodIP(msgspec.Struct, frozen=True):
    """One of a pod's addresses."""

    ip: str = ""


class ApiPodStatus(msgspec.Struct, frozen=True, rename="camel"):
    """A pod's status."""

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
        """Whether its readiness probes have passed."""
        return any(c.type == "Ready" and c.status == "True" for c in self.status.conditions or ())

    def declares(self, name: str) -> bool:
        """Whether a container has a port of that name."""
        return any(
            port.name == name
            for container in self.spec.containers or ()
            for port in container.ports or ()
        )


class ServiceLookup(msgspec.Struct, frozen=True):
    """What the API says of a Service and the pods that it selects.

    `service` is None where there is none, or where it was not asked for. The texts say why
    something was not asked: no right to, or no API server. They are empty where it was. Where
    `unreachable` is not empty the API server did not answer.
    """

    service: ApiService | None = None
    pods: tuple[ApiPod, ...] = ()
    service_skipped: str = ""
    pods_skipped: str = ""
    api_error: str = ""
