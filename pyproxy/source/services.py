"""What a Service means to a Service proxy.

Facts: kube-proxy of Kubernetes v1.36 (its service tracking) and the API server's validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from sys import intern

from pyproxy.config.values import IPVS_SCHEDULERS
from pyproxy.model import objects as model
from pyproxy.model.address import Address, Network, Port, Protocol, family_of
from pyproxy.model.objects import Kind, TrafficPolicy
from pyproxy.source import fields, wire
from pyproxy.source.fields import FieldProblems, NotProxied, shared

AFFINITY_TIMEOUT = 10800
"""Seconds of session affinity where a Service asks for it and does not say how long."""

AFFINITY_TIMEOUT_MAX = 86400
"""The longest session affinity that the API allows, in seconds."""

NOBODY = (Network(Address(bytes(4)), 32), Network(Address(bytes(16)), 128))
"""Source ranges that no client is in: no packet comes from the unspecified address."""

_EXPOSED = frozenset({"NodePort", "LoadBalancer"})


def service(read: wire.Service) -> model.Service | NotProxied:
    """Read a Service.

    Families are those of the cluster IPs (those of ipFamilies, should no cluster IP be valid).
    External IPs and load balancer addresses of another family are left out.
    """
    spec, labels = read.spec or wire.ServiceSpec(), read.metadata.labels
    if reason := fields.foreign(labels) or _unproxied(spec):
        return NotProxied(reason)
    name = fields.name_of(read.metadata)
    findings = FieldProblems(Kind.SERVICE.value, str(name))
    cluster_ips = fields.addresses(_cluster_ips(spec), (), findings)
    families = tuple(dict.fromkeys(map(family_of, cluster_ips)))
    families = families or fields.families(spec.ip_families or ())
    external_ips = fields.addresses(
        _numbered("spec.externalIPs", spec.external_ips), families, findings
    )
    balanced = spec.type == "LoadBalancer"
    load_balancer_ips: tuple[Address, ...] = ()
    source_ranges: tuple[Network, ...] = ()
    if balanced:
        load_balancer_ips = fields.addresses(_virtual_ips(read.status), families, findings)
        source_ranges = _source_ranges(spec.load_balancer_source_ranges or [], findings)
    external_policy = TrafficPolicy.CLUSTER
    if spec.type in _EXPOSED or spec.external_ips:
        external_policy = fields.policy(
            spec.external_traffic_policy, "spec.externalTrafficPolicy", findings
        )
    health_check_port = Port(0)
    if balanced and external_policy is TrafficPolicy.LOCAL:
        health_check_port = fields.port(
            spec.health_check_node_port, "spec.healthCheckNodePort", findings
        )
    return model.Service(
        name=name,
        ports=_service_ports(spec, findings),
        cluster_ips=cluster_ips,
        external_ips=external_ips,
        load_balancer_ips=load_balancer_ips,
        source_ranges=source_ranges,
        internal_policy=fields.policy(
            spec.internal_traffic_policy, "spec.internalTrafficPolicy", findings
        ),
        external_policy=external_policy,
        affinity_timeout=_affinity_timeout(spec, findings),
        health_check_port=health_check_port,
        families=shared(families),
        scheduler=_scheduler(read.metadata.annotations, findings),
        uid=read.metadata.uid or "",
        created=read.metadata.creation_timestamp or "",
        problems=findings.problems,
    )


def _unproxied(spec: wire.ServiceSpec) -> str:
    """Tell by its spec why a Service has no virtual address; empty where it has one."""
    if spec.type == "ExternalName":
        return "a name for another name (type ExternalName)"
    cluster_ip = spec.cluster_ip or next(iter(spec.cluster_ips or ()), "")
    if cluster_ip == "None":
        return "headless (clusterIP None)"
    return "" if cluster_ip else "no clusterIP yet"


def _numbered(field: str, texts: list[str] | None) -> Iterator[tuple[str, str]]:
    return ((f"{field}[{i}]", text) for i, text in enumerate(texts or ()))


def _cluster_ips(spec: wire.ServiceSpec) -> Iterator[tuple[str, str]]:
    if spec.cluster_ips:
        return _numbered("spec.clusterIPs", spec.cluster_ips)
    return iter([("spec.clusterIP", spec.cluster_ip or "")])


def _virtual_ips(status: wire.ServiceStatus | None) -> Iterator[tuple[str, str]]:
    """Pick the load balancer's addresses that arrive at nodes unchanged.

    An ingress with a hostname alone has no address here. One with ipMode Proxy answers by itself,
    and taking its address over would pass it by.
    """
    balancer = status.load_balancer if status else None
    for i, ingress in enumerate((balancer.ingress if balancer else None) or ()):
        if ingress.ip and (ingress.ip_mode or "VIP") == "VIP":
            yield f"status.loadBalancer.ingress[{i}].ip", ingress.ip


def _source_ranges(texts: list[str], findings: FieldProblems) -> tuple[Network, ...]:
    """Read loadBalancerSourceRanges, which the API lets pass with spaces around them.

    A malformed range lets nobody in. Were it only skipped, a Service with none but malformed
    ranges would have none at all, and that means everybody: whoever mistyped a restriction would
    have opened the Service to the world. Such a Service gets ranges which hold no client instead.
    """
    found: dict[Network, None] = {}
    for i, text in enumerate(texts):
        try:
            found[fields.network(text)] = None
        except ValueError as error:
            findings.note(f"spec.loadBalancerSourceRanges[{i}]", f"{error}; it lets nobody in")
    return tuple(found) if found or not texts else NOBODY


def _service_ports(
    spec: wire.ServiceSpec, findings: FieldProblems
) -> tuple[model.ServicePort, ...]:
    """Read a Service's ports; a second use of a port or a node port is left out.

    The API refuses such repetitions; a folder of manifests, or an object from before that
    validation, may have them, and a kernel map has one place for each.
    """
    ports: list[model.ServicePort] = []
    taken: set[tuple[Protocol, Port]] = set()
    nodes_taken: set[tuple[Protocol, Port]] = set()
    for i, entry in enumerate(spec.ports or ()):
        field = f"spec.ports[{i}]"
        protocol = fields.protocol(entry.protocol, f"{field}.protocol", findings)
        number = fields.port(entry.port, f"{field}.port", findings)
        if protocol is None or not number:
            continue
        if (protocol, number) in taken:
            findings.note(f"{field}.port", f"{number}/{protocol.name} is there twice; left out")
            continue
        node_port = Port(0)
        if entry.node_port and spec.type in _EXPOSED:
            node_port = fields.port(entry.node_port, f"{field}.nodePort", findings)
            if node_port and (protocol, node_port) in nodes_taken:
                findings.note(
                    f"{field}.nodePort", f"{node_port}/{protocol.name} is there twice; left out"
                )
                node_port = Port(0)
        taken.add((protocol, number))
        nodes_taken.add((protocol, node_port))
        ports.append(model.ServicePort(intern(entry.name or ""), protocol, number, node_port))
    return tuple(ports)


def _scheduler(annotations: wire.Annotations | None, findings: FieldProblems) -> str:
    """Read which of IPVS's schedulers is to pick endpoints, empty for the node's default."""
    name = (annotations.ipvs_scheduler if annotations else None) or ""
    if name and name not in IPVS_SCHEDULERS:
        findings.note(
            "metadata.annotations[pyproxy.io/ipvs-scheduler]",
            f"{name!r} is not one of {', '.join(IPVS_SCHEDULERS)}; the node's default is used",
        )
        return ""
    return intern(name)


def _affinity_timeout(spec: wire.ServiceSpec, findings: FieldProblems) -> int:
    """Read session affinity as seconds, 0 without."""
    if spec.session_affinity in {None, "", "None"}:
        return 0
    if spec.session_affinity != "ClientIP":
        findings.note(
            "spec.sessionAffinity",
            f"{spec.session_affinity!r} is neither ClientIP nor None; None is used",
        )
        return 0
    config = spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    if seconds is None or 0 < seconds <= AFFINITY_TIMEOUT_MAX:
        return seconds or AFFINITY_TIMEOUT
    findings.note(
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        f"{seconds} is not between 1 and {AFFINITY_TIMEOUT_MAX}; {AFFINITY_TIMEOUT} is used",
    )
    return AFFINITY_TIMEOUT
