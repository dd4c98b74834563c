"""Check a Service's selector with the user's rights: the agent's account may not list pods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import msgspec

from pyproxy.inspect.explain import Explanation, Result, Step, conclude
from pyproxy.inspect.explain.service import selected_pods
from pyproxy.model.address import address_text
from pyproxy.model.destination import Destination
from pyproxy.model.objects import ObjectName
from pyproxy.source.client import Client
from pyproxy.source.lookup import look_up
from pyproxy.source.object_lists import list_objects

_STEP = "selector"


class _Meta(msgspec.Struct, frozen=True):
    name: str = ""
    namespace: str = ""


class _Port(msgspec.Struct, frozen=True, rename="camel"):
    port: int = 0
    protocol: str | None = None
    node_port: int | None = None


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    cluster_ips: tuple[str, ...] | None = msgspec.field(default=None, name="clusterIPs")
    external_ips: tuple[str, ...] | None = msgspec.field(default=None, name="externalIPs")
    ports: tuple[_Port, ...] | None = None


class _Ingress(msgspec.Struct, frozen=True):
    ip: str | None = None


class _Balancer(msgspec.Struct, frozen=True):
    ingress: tuple[_Ingress, ...] | None = None


class _Status(msgspec.Struct, frozen=True, rename="camel"):
    load_balancer: _Balancer | None = None


class _Service(msgspec.Struct, frozen=True):
    metadata: _Meta
    spec: _Spec = _Spec()
    status: _Status = _Status()

    def addresses(self) -> Iterator[str]:
        yield from self.spec.cluster_ips or ()
        yield from self.spec.external_ips or ()
        balancer = self.status.load_balancer
        yield from (each.ip or "" for each in (balancer.ingress if balancer else None) or ())

    def has(self, destination: Destination) -> bool:
        text = address_text(destination.address)
        at_address = any(each == text for each in self.addresses())
        return any(
            (port.protocol or "TCP") == destination.protocol.name
            and destination.port in ((port.port,) if at_address else (port.node_port,))
            for port in self.spec.ports or ()
        )


class SelectorCheck:
    """The selector step of one target, read from the API server at its first use."""

    def __init__(self, client: Client, target: ObjectName | Destination) -> None:
        self._client = client
        self._target = target

    def fill_in(self, explanation: Explanation) -> Explanation:
        """Replace the selector step of an explanation if the agent has skipped it.

        Blocks for requests. Raises SourceError.
        """
        if not any(_is_skipped(step) for step in explanation.steps) or self._step is None:
            return explanation
        steps = [self._step if _is_skipped(step) else step for step in explanation.steps]
        return conclude(explanation.target, steps)

    @cached_property
    def _step(self) -> Step | None:
        """The step; None if no Service, or none with a selector, is found."""
        name = self._service()
        found = look_up(self._client, name) if name else None
        if found is None or found.service is None or not found.service.spec.selector:
            return None
        step = selected_pods(found, name.namespace if name else "")
        # Without the right to list pods the agent's own step says as much.
        return None if step.result is Result.SKIPPED else step

    def _service(self) -> ObjectName | None:
        target = self._target
        if isinstance(target, ObjectName):
            return target
        services = list_objects(self._client, "/api/v1/services", _Service)
        return _first(list(services), target)


def _first(services: Sequence[_Service], destination: Destination) -> ObjectName | None:
    found = next((each for each in services if each.has(destination)), None)
    return ObjectName(found.metadata.namespace, found.metadata.name) if found else None


def _is_skipped(step: Step) -> bool:
    return step.name == _STEP and step.result is Result.SKIPPED
