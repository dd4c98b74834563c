"""Validation errors of a Service, with the API server's messages. Facts: Kubernetes v1.36."""

from __future__ import annotations

from collections.abc import Iterator

from pyproxy_lab.apiserver.kinds.addresses import (
    address_errors,
    address_family,
    network_errors,
    non_special_errors,
)
from pyproxy_lab.apiserver.kinds.service_allocation import (
    HEADLESS,
    is_headless,
    may_have_node_ports,
    needs_health_check_port,
)
from pyproxy_lab.apiserver.names import (
    dns_label_problem,
    dns_subdomain_problem,
    labels_errors,
    port_name_problem,
)
from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.status import (
    FieldError,
    duplicate,
    forbidden_field,
    invalid_value,
    required,
    unsupported,
)

_TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
_PROTOCOLS = ("SCTP", "TCP", "UDP")
_POLICIES = ("Cluster", "Local")
_AFFINITIES = ("ClientIP", "None")
_FAMILIES = ("IPv4", "IPv6")
_FAMILY_POLICIES = ("PreferDualStack", "RequireDualStack", "SingleStack")
_DISTRIBUTIONS = ("PreferClose", "PreferSameNode", "PreferSameZone")
_LONGEST_AFFINITY = 86400
_PORT_RANGE = "must be between 1 and 65535, inclusive"


def errors(obj: Object, cluster_families: tuple[str, ...]) -> list[FieldError]:
    """Return the errors of a Service whose defaults are filled in."""
    spec = obj["spec"]
    return [
        *_ports(spec),
        *_choices(spec),
        *_cluster_ips(spec, cluster_families),
        *_by_type(spec),
        *_outside(spec),
        *labels_errors(spec.get("selector") or {}, "spec.selector"),
        *_status(obj),
    ]


def update_errors(new: Object, old: Object) -> list[FieldError]:
    """Return the errors of a change from one spec to another."""
    found: list[FieldError] = []
    stays = new["type"] != "ExternalName" and old["type"] != "ExternalName"
    fixed = "may not change once set"
    if stays and old.get("clusterIPs"):
        if (new.get("clusterIPs") or [""])[0] != old["clusterIPs"][0]:
            found.append(invalid_value("spec.clusterIPs[0]", new.get("clusterIPs"), fixed))
        elif new["ipFamilies"][:1] != old["ipFamilies"][:1]:
            found.append(invalid_value("spec.ipFamilies[0]", new["ipFamilies"][0], fixed))
        both = len(new.get("clusterIPs") or ()) > 1 and len(old["clusterIPs"]) > 1
        if both and new["clusterIPs"][1] != old["clusterIPs"][1]:
            found.append(invalid_value("spec.clusterIPs[1]", new["clusterIPs"], fixed))
    before, after = old.get("healthCheckNodePort"), new.get("healthCheckNodePort")
    if before and needs_health_check_port(new) and after != before:
        found.append(invalid_value("spec.healthCheckNodePort", after, "field is immutable"))
    kept = new["type"] == old["type"] == "LoadBalancer"
    if kept and new.get("loadBalancerClass") != old.get("loadBalancerClass"):
        found.append(invalid_value("spec.loadBalancerClass", new.get("loadBalancerClass"), fixed))
    return found


def _ports(spec: Object) -> Iterator[FieldError]:
    ports = spec.get("ports") or []
    if not ports and spec["type"] != "ExternalName" and not is_headless(spec):
        yield required("spec.ports")
    names: set[str] = set()
    seen: set[tuple[str, int]] = set()
    node_ports: set[tuple[str, int]] = set()
    for index, port in enumerate(ports):
        field = f"spec.ports[{index}]"
        yield from _port(port, len(ports) > 1, names, field)
        key = (port["protocol"], port.get("port", 0))
        if key in seen:
            shown = {"protocol": key[0], "port": key[1]}
            yield duplicate(field, shown)
        seen.add(key)
        if number := port.get("nodePort"):
            if not may_have_node_ports(spec):
                detail = f"may not be used when `type` is '{spec['type']}'"
                yield forbidden_field(f"{field}.nodePort", detail)
            elif (port["protocol"], number) in node_ports:
                yield duplicate(f"{field}.nodePort", number)
            node_ports.add((port["protocol"], number))


def _port(port: Object, must_be_named: bool, names: set[str], field: str) -> Iterator[FieldError]:
    name = port.get("name", "")
    if name:
        if problem := dns_label_problem(name):
            yield invalid_value(f"{field}.name", name, problem)
        elif name in names:
            yield duplicate(f"{field}.name", name)
        names.add(name)
    elif must_be_named:
        yield required(f"{field}.name")
    if not 1 <= port.get("port", 0) <= 65535:
        yield invalid_value(f"{field}.port", port.get("port", 0), _PORT_RANGE)
    if port["protocol"] not in _PROTOCOLS:
        yield unsupported(f"{field}.protocol", port["protocol"], _PROTOCOLS)
    target = port["targetPort"]
    if isinstance(target, str):
        if problem := port_name_problem(target):
            yield invalid_value(f"{field}.targetPort", target, problem)
    elif not 1 <= target <= 65535:
        yield invalid_value(f"{field}.targetPort", target, _PORT_RANGE)


def _choices(spec: Object) -> Iterator[FieldError]:
    for name, choices in (
        ("type", _TYPES),
        ("sessionAffinity", _AFFINITIES),
        ("internalTrafficPolicy", _POLICIES),
        ("trafficDistribution", _DISTRIBUTIONS),
    ):
        value = spec.get(name)
        if value is not None and value not in choices:
            yield unsupported(f"spec.{name}", value, choices)
    if spec["sessionAffinity"] == "ClientIP":
        seconds = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"]
        if not 0 < seconds <= _LONGEST_AFFINITY:
            field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
            detail = f"must be greater than 0 and less than {_LONGEST_AFFINITY}"
            yield invalid_value(field, seconds, detail)
        if is_headless(spec):
            detail = "may not be used when `clusterIP` is 'None'"
            yield invalid_value("spec.sessionAffinity", "ClientIP", detail)


def _cluster_ips(spec: Object, cluster: tuple[str, ...]) -> Iterator[FieldError]:
    given = spec.get("clusterIPs") or []
    if spec["type"] == "ExternalName":
        for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if spec.get(name):
                detail = "may not be set for ExternalName services"
                yield forbidden_field(f"spec.{name}", detail)
        return
    policy, families = spec["ipFamilyPolicy"], spec["ipFamilies"]
    if policy not in _FAMILY_POLICIES:
        yield unsupported("spec.ipFamilyPolicy", policy, _FAMILY_POLICIES)
    for index, family in enumerate(families):
        field = f"spec.ipFamilies[{index}]"
        if family not in _FAMILIES:
            yield unsupported(field, family, _FAMILIES)
        elif family not in cluster and not is_headless(spec):
            yield invalid_value(field, family, "not configured on this cluster")
    if len(set(families)) != len(families):
        yield duplicate("spec.ipFamilies[1]", families[1])
    if policy == "SingleStack" and (len(families) > 1 or len(given) > 1):
        detail = (
            "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are "
            "specified"
        )
        yield invalid_value("spec.ipFamilyPolicy", policy, detail)
    if policy == "RequireDualStack" and len(cluster) < 2 and not is_headless(spec):
        detail = "this cluster is not configured for dual-stack services"
        yield invalid_value("spec.ipFamilyPolicy", policy, detail)
    yield from _given_ips(spec, given, families)


def _given_ips(spec: Object, given: list[str], families: list[str]) -> Iterator[FieldError]:
    if given and spec.get("clusterIP") != given[0]:
        detail = "first value must match `clusterIP`"
        yield invalid_value("spec.clusterIPs", given, detail)
    if HEADLESS in given:
        if len(given) > 1:
            detail = "'None' must be the first and only value"
            yield invalid_value("spec.clusterIPs", given, detail)
        if may_have_node_ports(spec):
            detail = f"may not be set to 'None' for {spec['type']} services"
            yield invalid_value("spec.clusterIPs[0]", HEADLESS, detail)
        return
    if len(given) > 2:
        yield invalid_value("spec.clusterIPs", given, "may only hold up to 2 values")
        return
    for index, address in enumerate(given):
        field = f"spec.clusterIPs[{index}]"
        if problems := address_errors(address, field):
            yield from problems
        elif index < len(families) and address_family(address) != families[index]:
            detail = f"expected an {families[index]} value as indicated by `ipFamilies[{index}]`"
            yield invalid_value(field, address, detail)


def _by_type(spec: Object) -> Iterator[FieldError]:
    kind = spec["type"]
    if kind == "ExternalName":
        name = spec.get("externalName", "").removesuffix(".")
        if not name:
            yield required("spec.externalName", "may not be empty for ExternalName")
        elif problem := dns_subdomain_problem(name):
            yield invalid_value("spec.externalName", name, problem)
    if kind != "LoadBalancer":
        for name, shown in (
            ("loadBalancerSourceRanges", "may only be used when `type` is 'LoadBalancer'"),
            ("allocateLoadBalancerNodePorts", "may only be used when `type` is 'LoadBalancer'"),
            ("loadBalancerClass", "may only be used when `type` is 'LoadBalancer'"),
        ):
            if spec.get(name) not in (None, []):
                yield forbidden_field(f"spec.{name}", shown)
    policy = spec.get("externalTrafficPolicy")
    outside = may_have_node_ports(spec) or (kind == "ClusterIP" and spec.get("externalIPs"))
    if policy and not outside:
        detail = "may only be set for externally-accessible services"
        yield invalid_value("spec.externalTrafficPolicy", policy, detail)
    elif policy and policy not in _POLICIES:
        yield unsupported("spec.externalTrafficPolicy", policy, _POLICIES)
    health = spec.get("healthCheckNodePort")
    if health and not needs_health_check_port(spec):
        detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is "
        yield invalid_value("spec.healthCheckNodePort", health, f"{detail}'Local'")


def _outside(spec: Object) -> Iterator[FieldError]:
    for index, address in enumerate(spec.get("externalIPs") or ()):
        field = f"spec.externalIPs[{index}]"
        yield from address_errors(address, field)
        yield from non_special_errors(address, field)
    if spec["type"] == "LoadBalancer":
        for index, text in enumerate(spec.get("loadBalancerSourceRanges") or ()):
            yield from network_errors(text, f"spec.loadBalancerSourceRanges[{index}]")


def _status(obj: Object) -> Iterator[FieldError]:
    ingresses = obj["status"]["loadBalancer"].get("ingress") or ()
    if ingresses and obj["spec"]["type"] != "LoadBalancer":
        detail = "may only be used when `spec.type` is LoadBalancer"
        yield forbidden_field("status.loadBalancer.ingress", detail)
        return
    for index, ingress in enumerate(ingresses):
        field = f"status.loadBalancer.ingress[{index}]"
        if address := ingress.get("ip"):
            yield from address_errors(address, f"{field}.ip")
        mode = ingress.get("ipMode")
        if mode and mode not in {"VIP", "Proxy"}:
            yield unsupported(f"{field}.ipMode", mode, ("Proxy", "VIP"))
        if mode and not address:
            yield forbidden_field(f"{field}.ipMode", "may not be specified when `ip` is not set")
        name = ingress.get("hostname")
        if name and (problem := dns_subdomain_problem(name)):
            yield invalid_value(f"{field}.hostname", name, problem)
