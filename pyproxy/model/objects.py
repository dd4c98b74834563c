"""Services, EndpointSlices and the Node, reduced to the fields that a proxy uses.

`source` makes these from the JSON of the API and ignores invalid fields and objects that are not
proxied, so all values here are valid. Facts: the Service and EndpointSlice API of Kubernetes v1.36.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import msgspec

from pyproxy.errors import Problem
from pyproxy.model.address import Address, Family, Network, Port, Protocol


# gc=False where instances are many: they cannot be part of a cycle. A full garbage collection that
# traverses a struct for each Service delays changes by tens of milliseconds.
class ObjectName(msgspec.Struct, frozen=True, order=True, gc=False):
    """A namespace and a name; the namespace is empty for a Node."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Kind(enum.Enum):
    """The kinds of object that the agent watches."""

    SERVICE = "Service"
    ENDPOINT_SLICE = "EndpointSlice"
    NODE = "Node"


class TrafficPolicy(enum.Enum):
    """Whether all endpoints of the cluster may be used, or those of this node only."""

    CLUSTER = "Cluster"
    LOCAL = "Local"


class ServicePort(msgspec.Struct, frozen=True, gc=False):
    """One port of a Service; `node_port` is 0 if it has none."""

    name: str
    protocol: Protocol
    port: Port
    node_port: Port = Port(0)


class Service(msgspec.Struct, frozen=True, gc=False):
    """A Service that is proxied.

    `load_balancer_ips` are those with ipMode VIP. `affinity_timeout` is in seconds, 0 without
    session affinity. `health_check_port` is spec.healthCheckNodePort or 0. `scheduler` is the IPVS
    scheduler, empty for the default. `problems` are the invalid fields, which are ignored.
    """

    name: ObjectName
    ports: tuple[ServicePort, ...]
    cluster_ips: tuple[Address, ...] = ()
    external_ips: tuple[Address, ...] = ()
    load_balancer_ips: tuple[Address, ...] = ()
    source_ranges: tuple[Network, ...] = ()
    internal_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    external_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    affinity_timeout: int = 0
    health_check_port: Port = Port(0)
    families: tuple[Family, ...] = ()
    scheduler: str = ""
    uid: str = ""
    created: str = ""
    problems: tuple[Problem, ...] = ()


class Endpoint(msgspec.Struct, frozen=True, gc=False):
    """An address of an EndpointSlice, with the defaults of its conditions filled in.

    `node` and `zone` are empty if not set. The hints are the zones and nodes that should use this
    endpoint, empty without hints.
    """

    address: Address
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node: str = ""
    zone: str = ""
    hint_zones: tuple[str, ...] = ()
    hint_nodes: tuple[str, ...] = ()


class SlicePort(msgspec.Struct, frozen=True, gc=False):
    """A port of all endpoints of a slice; it belongs to the ServicePort of the same name."""

    name: str
    protocol: Protocol
    port: Port


class EndpointSlice(msgspec.Struct, frozen=True, gc=False):
    """A part of a Service's endpoints, all of one family.

    `triggered` is the time of the change that caused this version of the slice (annotation
    endpoints.kubernetes.io/last-change-trigger-time), in seconds since the epoch, 0 if unknown.
    """

    name: ObjectName
    service: ObjectName
    family: Family
    ports: tuple[SlicePort, ...]
    endpoints: tuple[Endpoint, ...]
    triggered: float = 0.0
    problems: tuple[Problem, ...] = ()


class DeferredSlice(msgspec.Struct, frozen=True, gc=False):
    """An EndpointSlice of a first list, of which the endpoints are not decoded yet.

    `head` is the slice without endpoints, and without problems. `entries` are the endpoints as
    they were read. `decode` is pure and raises nothing.
    """

    head: EndpointSlice
    entries: list[bytes]
    decode: Callable[[EndpointSlice, list[bytes]], EndpointSlice | Problem]

    @property
    def name(self) -> ObjectName:
        """The name of the slice."""
        return self.head.name

    @property
    def problems(self) -> tuple[Problem, ...]:
        """None so far."""
        return ()

    def complete(self) -> EndpointSlice | Problem:
        """Return the slice with its endpoints, or a Problem if it cannot be decoded."""
        return self.decode(self.head, self.entries)


class Node(msgspec.Struct, frozen=True):
    """This node. The first address of each family is its primary one.

    `eligible` is false while the Node is being deleted or has the cluster autoscaler's taint.
    `problems` are the invalid fields, which are ignored.
    """

    name: str
    addresses: tuple[Address, ...] = ()
    pod_networks: tuple[Network, ...] = ()
    zone: str = ""
    eligible: bool = True
    uid: str = ""
    problems: tuple[Problem, ...] = ()
