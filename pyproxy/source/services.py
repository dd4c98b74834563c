"""Convert Services of the API into Services of the model.

Facts: kube-proxy of Kubernetes v1.36 (its service tracking) and the API server's validation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from sys import intern

from pyproxy.config.values import IPVS_SCHEDULERS
from pyproxy.model import objects as model
from pyproxy.model.address import (
    Address,
    Family,
    Network,
    Port,
    Protocol,
    family_of,
    parse_address,
)
from pyproxy.model.objects import Kind, TrafficPolicy
from pyproxy.model.special_addresses import UNUSUAL_FIRST_BYTES
from pyproxy.source import fields, wire
from pyproxy.source.fields import FieldProblems, NotProxied, shared

# DefaultClientIPServiceAffinitySeconds of the API; a manifest has not passed its defaulting.
AFFINITY_TIMEOUT = 10800
"""Default timeout of session affinity, in seconds."""

AFFINITY_TIMEOUT_MAX = 86400
"""The longest timeout of session affinity that the API allows, in seconds."""

NO_CLIENT = (Network(Address(bytes(4)), 32), Network(Address(bytes(16)), 128))
"""Source ranges that match no client: no packet comes from the unspecified address."""

# Global names, because an attribute lookup on an enum is slow. So is its hash.
_KIND, _CLUSTER, _LOCAL = Kind.SERVICE, TrafficPolicy.CLUSTER, TrafficPolicy.LOCAL
_NONE = Address(b"")
_BY_LENGTH: dict[int, tuple[frozenset[int], tuple[Family, ...]]] = {
    0: (frozenset(), ()),
    4: (UNUSUAL_FIRST_BYTES[Family.IPV4], (Family.IPV4,)),
    16: (UNUSUAL_FIRST_BYTES[Family.IPV6], (Family.IPV6,)),
}
"""The unusual first bytes of an address, and the families of a Service with it alone."""

_EXPOSED = frozenset({"NodePort", "LoadBalancer"})


def service(obj: wire.Service) -> model.Service | NotProxied:
    """Convert a Service.

    The families are those of the cluster IPs, or of ipFamilies if no cluster IP is valid. External
    IPs and load balancer addresses of another family are ignored.
    """
    spec, labels = obj.spec or wire.ServiceSpec(), obj.metadata.labels
    if reason := fields.not_proxied_label(labels) or _unproxied(spec):
        return NotProxied(reason)
    name = fields.name_of(obj.metadata)
    problems = FieldProblems(_KIND, name)
    cluster_ips, families = _virtual_addresses(spec, problems)
    external_ips: tuple[Address, ...] = ()
    if spec.external_ips:
        external_ips = fields.addresses(
            "spec.externalIPs[{}]", enumerate(spec.external_ips), families, problems
        )
    load_balanced = spec.type == "LoadBalancer"
    load_balancer_ips: tuple[Address, ...] = ()
    source_ranges: tuple[Network, ...] = ()
    if load_balanced:
        load_balancer_ips = fields.addresses(
            "status.loadBalancer.ingress[{}].ip", _virtual_ips(obj.status), families, problems
        )
        source_ranges = _source_ranges(spec.load_balancer_source_ranges or [], problems)
    external_policy = _CLUSTER
    # The API allows externalTrafficPolicy for these Services only.
    if spec.type in _EXPOSED or spec.external_ips:
        external_policy = fields.policy(
            spec.external_traffic_policy, "spec.externalTrafficPolicy", problems
        )
    health_check_port = Port(0)
    # The API server allocates a healthCheckNodePort for these Services only.
    if load_balanced and external_policy is _LOCAL:
        health_check_port = fields.port(
            spec.health_check_node_port, "spec.healthCheckNodePort", problems
        )
    return model.Service(
        name=name,
        ports=_service_ports(spec, problems),
        cluster_ips=cluster_ips,
        external_ips=external_ips,
        load_balancer_ips=load_balancer_ips,
        source_ranges=source_ranges,
        internal_policy=fields.policy(
            spec.internal_traffic_policy, "spec.internalTrafficPolicy", problems
        ),
        external_policy=external_policy,
        affinity_timeout=_affinity_timeout(spec, problems),
        health_check_port=health_check_port,
        families=families,
        scheduler=_scheduler(obj.metadata.annotations, problems),
        uid=obj.metadata.uid or "",
        created=obj.metadata.creation_timestamp or "",
        problems=problems.all(),
    )


def _unproxied(spec: wire.ServiceSpec) -> str:
    """Return why the spec gives a Service no virtual address; empty if it has one."""
    if spec.type == "ExternalName":
        return "type ExternalName"
    cluster_ip = spec.cluster_ip or next(iter(spec.cluster_ips or ()), "")
    if cluster_ip == "None":
        return "headless (clusterIP None)"
    return "" if cluster_ip else "no clusterIP yet"


def _virtual_addresses(
    spec: wire.ServiceSpec, problems: FieldProblems
) -> tuple[tuple[Address, ...], tuple[Family, ...]]:
    """Return the cluster IPs and the families of a Service."""
    texts = spec.cluster_ips
    if texts and len(texts) == 1:
        # Most Services: one ordinary address.
        try:
            packed = parse_address(texts[0])
        except ValueError:
            packed = _NONE
        unusual, families = _BY_LENGTH[len(packed)]
        if packed and packed[0] not in unusual:
            return (packed,), families
    found = fields.addresses(*_cluster_ips(spec), (), problems)
    families = tuple(dict.fromkeys(map(family_of, found)))
    families = families or fields.families(spec.ip_families or ())
    return found, shared(families, len(families))


def _cluster_ips(spec: wire.ServiceSpec) -> tuple[str, Iterable[tuple[int, str]]]:
    """Return the field of the cluster IPs, and the IPs with their indexes."""
    # Manifests, and objects from before dual stack, may have clusterIP only.
    if spec.cluster_ips:
        return "spec.clusterIPs[{}]", enumerate(spec.cluster_ips)
    return "spec.clusterIP", [(0, spec.cluster_ip or "")]


def _virtual_ips(status: wire.ServiceStatus | None) -> Iterator[tuple[int, str]]:
    """Yield the load balancer addresses to which packets arrive at nodes unchanged (ipMode VIP).

    An ingress that has only a hostname is skipped. With ipMode Proxy the load balancer terminates
    connections itself, and proxying its address on the node would bypass it (KEP-1860).
    """
    balancer = status.load_balancer if status else None
    for i, ingress in enumerate((balancer.ingress if balancer else None) or ()):
        if ingress.ip and (ingress.ip_mode or "VIP") == "VIP":
            yield i, ingress.ip


def _source_ranges(texts: list[str], problems: FieldProblems) -> tuple[Network, ...]:
    """Convert loadBalancerSourceRanges, which the API accepts with spaces around them.

    A malformed range matches no client. A Service of which all ranges are malformed gets ranges
    that match no client, because no ranges at all would open it to every client.
    """
    networks: dict[Network, None] = {}
    for i, text in enumerate(texts):
        try:
            networks[fields.network(text)] = None
        except ValueError as error:
            problems.add(f"spec.loadBalancerSourceRanges[{i}]", f"{error}; it matches no client")
    return tuple(networks) if networks or not texts else NO_CLIENT


def _service_ports(
    spec: wire.ServiceSpec, problems: FieldProblems
) -> tuple[model.ServicePort, ...]:
    """Convert the ports of a Service; a duplicate port or node port is ignored.

    The API server rejects duplicates, but a folder of manifests or an object from before that
    validation may have them, and a map in the kernel has one element for each key.
    """
    entries = spec.ports or ()
    if len(entries) == 1 and not entries[0].node_port:
        # Most Services: one port, which can be no duplicate and is equal to those of many others.
        entry = entries[0]
        # The cache keeps its texts alive, so it takes short ones only.
        if len(entry.name or "") + len(entry.protocol or "") <= fields.LONGEST_NAME:
            usual = _one_port(entry.name, entry.protocol, entry.port)
            if usual:
                return usual
    ports: list[model.ServicePort] = []
    taken: set[tuple[Protocol, Port]] = set()
    nodes_taken: set[tuple[Protocol, Port]] = set()
    for i, entry in enumerate(entries):
        field = f"spec.ports[{i}]"
        protocol = fields.protocol(entry.protocol, f"{field}.protocol", problems)
        number = fields.port(entry.port, f"{field}.port", problems)
        if protocol is None or not number:
            continue
        if (protocol, number) in taken:
            problems.add(f"{field}.port", f"{number}/{protocol.name} is a duplicate; ignored")
            continue
        node_port = Port(0)
        if entry.node_port and spec.type in _EXPOSED:
            node_port = fields.port(entry.node_port, f"{field}.nodePort", problems)
            if node_port and (protocol, node_port) in nodes_taken:
                problems.add(
                    f"{field}.nodePort", f"{node_port}/{protocol.name} is a duplicate; ignored"
                )
                node_port = Port(0)
        taken.add((protocol, number))
        nodes_taken.add((protocol, node_port))
        ports.append(model.ServicePort(intern(entry.name or ""), protocol, number, node_port))
    return tuple(ports)


@lru_cache(4096)
def _one_port(
    name: str | None, protocol: str | None, port: int | None
) -> tuple[model.ServicePort, ...]:
    """Convert a port; empty if it is invalid."""
    known, number = fields.known_protocol(protocol), port or 0
    if known is None or not 0 < number < 65536:
        return ()
    return (model.ServicePort(intern(name or ""), known, Port(number)),)


def _scheduler(annotations: wire.Annotations | None, problems: FieldProblems) -> str:
    """Return the IPVS scheduler of the annotation, empty for the default of the node."""
    name = (annotations.ipvs_scheduler if annotations else None) or ""
    if name and name not in IPVS_SCHEDULERS:
        problems.add(
            "metadata.annotations[pyproxy.io/ipvs-scheduler]",
            f"{name!r} is not one of {', '.join(IPVS_SCHEDULERS)}; the node's default is used",
        )
        return ""
    return intern(name)


def _affinity_timeout(spec: wire.ServiceSpec, problems: FieldProblems) -> int:
    """Return the timeout of session affinity in seconds, 0 without affinity."""
    if spec.session_affinity in {None, "", "None"}:
        return 0
    if spec.session_affinity != "ClientIP":
        problems.add(
            "spec.sessionAffinity",
            f"{spec.session_affinity!r} is neither ClientIP nor None; None is used",
        )
        return 0
    config = spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    if seconds is None or 0 < seconds <= AFFINITY_TIMEOUT_MAX:
        return seconds or AFFINITY_TIMEOUT
    problems.add(
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        f"{seconds} is not between 1 and {AFFINITY_TIMEOUT_MAX}; {AFFINITY_TIMEOUT} is used",
    )
    return AFFINITY_TIMEOUT
