"""All that is known of one question, and what a step of the explanation is."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence

import msgspec

from pyproxy.dataplane.interface import StateDiff
from pyproxy.inspect.evidence import Evidence
from pyproxy.inspect.services import families
from pyproxy.model.address import Address, Backend, Family, family_of
from pyproxy.model.objects import Endpoint, ObjectName, Service, ServicePort
from pyproxy.policy.endpoints import merge_slices
from pyproxy.policy.routing import PortRouting
from pyproxy.source.api_objects import ServiceLookup


class Mark(enum.Enum):
    """How a step came out; the values are what scripts read."""

    TICK = "ok"
    CROSS = "wrong"
    NOTE = "note"
    SKIPPED = "not asked"


class Step(msgspec.Struct, frozen=True):
    """One step on the way from a Service to a packet.

    `says` is one sentence, `fix` what to do where it is wrong, and `lines` the particulars. After a
    step that is `last` there is nothing to look at.
    """

    name: str
    mark: Mark
    says: str
    fix: str = ""
    lines: tuple[str, ...] = ()
    last: bool = False


class KernelFacts(msgspec.Struct, frozen=True):
    """What was read on this node: `held` and `flows` are None where the texts say why not.

    `flows` are those, a line each, that go where the Service sends nobody any more.
    """

    held: StateDiff | None = None
    not_read: str = ""
    flows: tuple[str, ...] | None = None
    flows_not_read: str = ""


class Port(msgspec.Struct, frozen=True):
    """One port of the Service in one family, with the endpoints that slices have for it."""

    family: Family
    port: ServicePort
    endpoints: dict[Backend, Endpoint]
    routing: PortRouting | None

    def __str__(self) -> str:
        name = f"{self.port.name} " if self.port.name else ""
        return f"{name}{self.port.port}/{self.port.protocol.name}"


class Case(msgspec.Struct, frozen=True):
    """The facts. `sender` is the client that the question is about, None for anybody."""

    evidence: Evidence
    lookup: ServiceLookup
    kernel: KernelFacts
    sender: Address | None = None

    @property
    def name(self) -> ObjectName:
        """The Service's name; empty where the question led to none."""
        return self.evidence.resolved.name or ObjectName("", "")

    @property
    def service(self) -> Service:
        """The Service, once it is certain that the agent has it; else ValueError."""
        if self.evidence.service is None:
            raise ValueError("the agent has no such Service, and steps that need one must not come")
        return self.evidence.service

    @property
    def hostname(self) -> str:
        """This node's name."""
        return self.evidence.settings.node_name

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that the question is about."""
        destination = self.evidence.resolved.destination
        if destination is not None:
            return (family_of(destination.address),)
        return families(self.service)

    def ports(self) -> Iterator[Port]:
        """Give the ports that the question is about."""
        joined = merge_slices(self.evidence.slices, self.hostname)
        routings = self.evidence.routing.ports if self.evidence.routing else ()
        answered = {(a.family, a.name, a.protocol): a for a in routings}
        for family in self.families:
            for port in self.service.ports:
                key = (family, port.name, port.protocol)
                if self._is_meant(answered.get(key)):
                    yield Port(family, port, joined.get(key, {}), answered.get(key))

    def _is_meant(self, routing: PortRouting | None) -> bool:
        destination = self.evidence.resolved.destination
        if destination is None or not self.evidence.resolved.answered:
            return True
        return routing is not None and any(
            (f.address, f.port, routing.protocol)
            == (destination.address, destination.port, destination.protocol)
            for f in routing.frontends
        )


def listed(texts: Sequence[str], most: int = 5) -> str:
    """Join a few texts, and say how many more there are."""
    rest = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {rest} more" if rest > 0 else "")


def plural(number: int, noun: str) -> str:
    """Write a number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
