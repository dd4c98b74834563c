"""The objects of the API, reduced to the fields that a Service proxy uses.

`stream` decodes JSON into them, and `protobuf_objects` protobuf.

The types describe valid JSON, not valid objects. Go servers and clients write null for an empty
list, string or map, so every field except the name may be null. `services`, `slices` and `decode`
interpret the values. msgspec skips unknown fields without building them. Labels and annotations are
structs of the few keys in use, because a dict for each object costs more than all its other fields.

Facts: Service, Node v1 and EndpointSlice discovery.k8s.io/v1 of Kubernetes v1.36.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import msgspec
from msgspec import UNSET, Raw, UnsetType, field


# gc=False: these trees have no cycles, so the garbage collector need not traverse them.
class Labels(msgspec.Struct, gc=False):
    """The labels in use; UNSET means absent, as opposed to empty."""

    proxy_name: str | UnsetType | None = field(
        default=UNSET, name="service.kubernetes.io/service-proxy-name"
    )
    headless: str | UnsetType | None = field(default=UNSET, name="service.kubernetes.io/headless")
    service_name: str | None = field(default=None, name="kubernetes.io/service-name")
    zone: str | None = field(default=None, name="topology.kubernetes.io/zone")


class Annotations(msgspec.Struct, gc=False):
    """The annotations in use."""

    triggered: str | None = field(
        default=None, name="endpoints.kubernetes.io/last-change-trigger-time"
    )
    initial_events_end: str | None = field(default=None, name="k8s.io/initial-events-end")
    ipvs_scheduler: str | None = field(default=None, name="pyproxy.io/ipvs-scheduler")


class Meta(msgspec.Struct, rename="camel", gc=False):
    """The metadata of an object."""

    name: str = ""
    namespace: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: Labels | None = None
    annotations: Annotations | None = None


class ServicePort(msgspec.Struct, rename="camel", gc=False):
    """An element of a Service's spec.ports."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    node_port: int | None = None


class ClientIPConfig(msgspec.Struct, rename="camel", gc=False):
    """A Service's spec.sessionAffinityConfig.clientIP."""

    timeout_seconds: int | None = None


class SessionAffinityConfig(msgspec.Struct, gc=False):
    """A Service's spec.sessionAffinityConfig."""

    client_ip: ClientIPConfig | None = field(default=None, name="clientIP")


class ServiceSpec(msgspec.Struct, rename="camel", gc=False):
    """A Service's spec."""

    type: str | None = None
    cluster_ip: str | None = field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = field(default=None, name="clusterIPs")
    external_ips: list[str] | None = field(default=None, name="externalIPs")
    ports: list[ServicePort] | None = None
    ip_families: list[str] | None = None
    load_balancer_source_ranges: list[str] | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    session_affinity: str | None = None
    session_affinity_config: SessionAffinityConfig | None = None
    health_check_node_port: int | None = None


class Ingress(msgspec.Struct, rename="camel", gc=False):
    """An element of a Service's status.loadBalancer.ingress."""

    ip: str | None = None
    ip_mode: str | None = None


class LoadBalancerStatus(msgspec.Struct, gc=False):
    """A Service's status.loadBalancer."""

    ingress: list[Ingress] | None = None


class ServiceStatus(msgspec.Struct, rename="camel", gc=False):
    """A Service's status."""

    load_balancer: LoadBalancerStatus | None = None


class Service(msgspec.Struct, gc=False):
    """A Service."""

    metadata: Meta
    kind: str | None = None
    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


class ProtobufService(msgspec.Struct, gc=False):
    """A Service of which spec and status are undecoded protobuf."""

    metadata: Meta
    kind: str | None
    spec: bytes
    status: bytes


class Conditions(msgspec.Struct, gc=False):
    """An endpoint's conditions; null differs from false."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(msgspec.Struct, gc=False):
    """An element of hints.forZones or hints.forNodes."""

    name: str | None = None


class Hints(msgspec.Struct, rename="camel", gc=False):
    """An endpoint's hints."""

    for_zones: list[Hint] | None = None
    for_nodes: list[Hint] | None = None


class Endpoint(msgspec.Struct, rename="camel", gc=False):
    """An element of a slice's endpoints."""

    addresses: list[str] | None = None
    conditions: Conditions | None = None
    hints: Hints | None = None
    node_name: str | None = None
    zone: str | None = None


class SlicePort(msgspec.Struct, gc=False):
    """An element of a slice's ports."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class EndpointSlice(msgspec.Struct, rename="camel", gc=False):
    """An EndpointSlice."""

    metadata: Meta
    kind: str | None = None
    address_type: str | None = None
    endpoints: list[Endpoint] | None = None
    ports: list[SlicePort] | None = None


class ProtobufSlice(msgspec.Struct, gc=False):
    """An EndpointSlice of which the endpoints are undecoded protobuf."""

    metadata: Meta
    kind: str | None
    address_type: str | None
    endpoints: Iterable[bytes]
    ports: list[SlicePort]


class Taint(msgspec.Struct, gc=False):
    """An element of a Node's spec.taints."""

    key: str | None = None


class NodeSpec(msgspec.Struct, rename="camel", gc=False):
    """A Node's spec."""

    pod_cidr: str | None = field(default=None, name="podCIDR")
    pod_cidrs: list[str] | None = field(default=None, name="podCIDRs")
    taints: list[Taint] | None = None


class NodeAddress(msgspec.Struct, gc=False):
    """An element of a Node's status.addresses."""

    type: str | None = None
    address: str | None = None


class NodeStatus(msgspec.Struct, gc=False):
    """A Node's status."""

    addresses: list[NodeAddress] | None = None


class Node(msgspec.Struct, gc=False):
    """A Node."""

    metadata: Meta
    kind: str | None = None
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class Identity(msgspec.Struct, rename="camel", gc=False):
    """The metadata that identifies an object which cannot be decoded otherwise."""

    name: str = ""
    namespace: str | None = None
    resource_version: str | None = None


class Identified(msgspec.Struct, gc=False):
    """An object of which only the identity is decoded."""

    metadata: Identity
    kind: str | None = None


class Status(msgspec.Struct, gc=False):
    """The body of an error response, and the object of an ERROR event."""

    kind: str | None = None
    message: str | None = None
    reason: str | None = None
    code: int | None = None


class ListMeta(msgspec.Struct, rename="camel", gc=False):
    """A list's metadata; `continue_` is empty on the last page."""

    resource_version: str | None = None
    continue_: str | None = field(default=None, name="continue")


class ObjectList(msgspec.Struct):
    """A list with undecoded items, so that an invalid item does not affect the others."""

    kind: str
    metadata: ListMeta
    items: list[Raw] | None = None


class WatchEvent(msgspec.Struct):
    """One line of a watch, with an undecoded object."""

    type: str
    object: Raw


class Bookmark(msgspec.Struct):
    """The object of a BOOKMARK event."""

    metadata: Meta


class ProtobufObject(msgspec.Struct, frozen=True, gc=False):
    """An undecoded object in protobuf, as Raw is one in JSON."""

    data: bytes


Encoded: TypeAlias = Raw | ProtobufObject
"""An undecoded object of a list or a watch."""


def size(obj: Encoded) -> int:
    """Return the bytes of an undecoded object."""
    return len(obj.data) if isinstance(obj, ProtobufObject) else memoryview(obj).nbytes


def detached(obj: Encoded) -> Encoded:
    """Return an object that does not keep the bytes around it."""
    # A Raw keeps all bytes of its event.
    return obj if isinstance(obj, ProtobufObject) else obj.copy()
