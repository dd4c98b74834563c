"""Services, EndpointSlices and the Node, reduced to what a proxy acts on.

`source` makes these from the API's JSON and leaves out what is not ours, so whatever is here is
valid. Facts: the Service and EndpointSlice API of Kubernetes v1.36.
"""

from __future__ import annotations

import enum

import msgspec

from pyproxy.errors import Problem
from pyproxy.model.address import Address, Family, Network, Port, Protocol


class ObjectName(msgspec.Struct, frozen=True, order=True, gc=False):
    """A namespace and a name; the namespace is empty for a Node."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Kind(enum.Enum):
    """The kinds of object that the agent follows."""

    SERVICE = "Service"
    ENDPOINT_SLICE = "EndpointSlice"
    NODE = "Node"


class TrafficPolicy(enum.Enum):
    """Whether any endpoint of the cluster serves, or this node's alone."""

    CLUSTER = "Cluster"
    LOCAL = "Local"


class ServicePort(msgspec.Struct, frozen=True, gc=False):
    """One port of a Service; `node_port` is 0 where it has none."""

    name: str
    protocol: Protocol
    port: Port
    node_port: Port = Port(0)


class Service(msgspec.Struct, frozen=True):
    """A Service that has at least one virtual address or node port of ours.

    `load_balancer_ips` are those whose ipMode is VIP. `affinity_timeout` is in seconds, 0 without
    session affinity. `health_check_port` is 0 where the Service asks for none. `scheduler` is how
    IPVS is to pick an endpoint, empty where the Service does not say. `problems` are the parts of
    the object that were left out, and why.
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
    """One address behind a Service, with its conditions as they read once defaults are filled in.

    `node` and `zone` are empty where the slice does not say. The hints name the zones and nodes
    that should use this endpoint; both are empty where it has none.
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
    """A port that all endpoints of a slice have; its name joins it to a ServicePort."""

    name: str
    protocol: Protocol
    port: Port


class EndpointSlice(msgspec.Struct, frozen=True):
    """A part of a Service's endpoints, all of one family.

    `triggered` is when the change that wrote this slice began, in seconds since the epoch (the
    annotation endpoints.kubernetes.io/last-change-trigger-time), 0 where unknown.
    """

    name: ObjectName
    service: ObjectName
    family: Family
    ports: tuple[SlicePort, ...]
    endpoints: tuple[Endpoint, ...]
    triggered: float = 0.0
    problems: tuple[Problem, ...] = ()


class Node(msgspec.Struct, frozen=True):
    """This node. The first address of each family is its primary one.

    `eligible` is false while the node is being deleted or the cluster autoscaler is about to.
    `problems` are the parts of the object that were left out, and why.
    """

    name: str
    addresses: tuple[Address, ...] = ()
    pod_networks: tuple[Network, ...] = ()
    zone: str = ""
    eligible: bool = True
    uid: str = ""
    problems: tuple[Problem, ...] = ()
