"""Services: what is carried over on update, and defaults. Checks and allocation lie beside."""

from __future__ import annotations

from pyproxy_lab.apiserver.kinds import service_errors
from pyproxy_lab.apiserver.kinds.addresses import address_family
from pyproxy_lab.apiserver.kinds.rules import Rules
from pyproxy_lab.apiserver.kinds.service_allocation import (
    Allocator,
    is_headless,
    may_have_node_ports,
    needs_health_check_port,
)
from pyproxy_lab.apiserver.names import dns_label_problem
from pyproxy_lab.apiserver.objects import Object, section
from pyproxy_lab.apiserver.status import FieldError

_EXTERNAL_TYPES = {"NodePort", "LoadBalancer"}
_AFFINITY_SECONDS = 10800


class ServiceRules(Rules):
    """Rules for services."""

    creates_on_update = True
    returns_deleted = True
    fields = Rules.fields | {"spec.clusterIP", "spec.type"}

    def __init__(self, allocator: Allocator) -> None:
        self._allocator = allocator

    def name_problem(self, name: str) -> str:
        """A service's name is a DNS label."""
        return dns_label_problem(name)

    def reset_status(self, obj: Object) -> None:
        """A new service has no load balancer yet."""
        obj["status"] = {"loadBalancer": {}}

    def carry_over(self, new: Object, old: Object) -> None:
        """Keep cluster IPs, families and ports that a client left out, as its type allows.

        What is no load balancer any more has no load balancer's status.
        """
        spec, had = section(new, "spec"), old["spec"]
        spec.setdefault("type", "ClusterIP")
        if spec["type"] != had["type"]:
            _drop_what_the_type_had(spec, had)
            if had["type"] == "LoadBalancer":
                section(new, "status")["loadBalancer"] = {}
        if spec["type"] == "ExternalName" or had["type"] == "ExternalName":
            return
        _carry_cluster_ips(spec, had)
        _carry_families(spec, had)
        if may_have_node_ports(spec) and may_have_node_ports(had):
            _carry_node_ports(spec, had)
        if needs_health_check_port(spec) and needs_health_check_port(had):
            spec["healthCheckNodePort"] = spec.get("healthCheckNodePort") or had.get(
                "healthCheckNodePort", 0
            )

    def default(self, obj: Object) -> None:
        """Fill in defaults as kube-apiserver does, families included."""
        spec = section(obj, "spec")
        kind = spec.setdefault("type", "ClusterIP")
        if spec.setdefault("sessionAffinity", "None") == "ClientIP":
            config = spec.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {})
            config.setdefault("timeoutSeconds", _AFFINITY_SECONDS)
        elif spec["sessionAffinity"] == "None":
            spec.pop("sessionAffinityConfig", None)
        for port in spec.get("ports") or ():
            port.setdefault("protocol", "TCP")
            if port.get("targetPort") in {None, "", 0}:
                port["targetPort"] = port.get("port", 0)
        if kind in _EXTERNAL_TYPES or (kind == "ClusterIP" and spec.get("externalIPs")):
            spec.setdefault("externalTrafficPolicy", "Cluster")
        if kind == "LoadBalancer":
            spec.setdefault("allocateLoadBalancerNodePorts", True)
        if kind != "ExternalName":
            spec.setdefault("internalTrafficPolicy", "Cluster")
            _default_cluster_ips(spec)
            self._default_families(spec)
        balancer = section(obj, "status").setdefault("loadBalancer", {})
        for ingress in balancer.get("ingress") or ():
            if ingress.get("ip"):
                ingress.setdefault("ipMode", "VIP")

    def errors(self, obj: Object) -> list[FieldError]:
        """Check the whole spec and the load balancer's status."""
        return service_errors.errors(obj, self._allocator.families)

    def update_errors(self, new: Object, old: Object) -> list[FieldError]:
        """The first cluster IP and its family stay, and so does a health check node port."""
        return service_errors.update_errors(new["spec"], old["spec"])

    def allocate(self, new: Object, old: Object | None) -> list[FieldError]:
        """Take cluster IPs and node ports."""
        return self._allocator.allocate(new["spec"], old["spec"] if old else None)

    def settle(self, new: Object | None, old: Object | None) -> None:
        """Let go the cluster IPs and node ports that only the old version had."""
        self._allocator.settle(new["spec"] if new else None, old["spec"] if old else None)

    def selectable(self, obj: Object) -> dict[str, str]:
        """The cluster IP and the type."""
        spec = obj["spec"]
        return {"spec.clusterIP": spec.get("clusterIP", ""), "spec.type": spec["type"]}

    def _default_families(self, spec: Object) -> None:
        cluster = self._allocator.families
        chosen = spec.get("clusterIPs") or []
        if is_headless(spec) and not spec.get("selector"):
            spec.setdefault("ipFamilyPolicy", "RequireDualStack")
            every = cluster if len(cluster) > 1 else (*cluster, _other(cluster[0]))
            default = tuple(spec.get("ipFamilies") or ()) or every
        else:
            every = cluster
            given = tuple(filter(None, map(address_family, chosen)))
            default = tuple(spec.get("ipFamilies") or ()) or given or cluster[:1]
            wants_two = len(default) > 1 or len(chosen) > 1
            spec.setdefault("ipFamilyPolicy", "RequireDualStack" if wants_two else "SingleStack")
        if spec["ipFamilyPolicy"] != "SingleStack" and len(default) == 1:
            default += tuple(family for family in every if family not in default)
        spec["ipFamilies"] = list(default)


def _other(family: str) -> str:
    return "IPv6" if family == "IPv4" else "IPv4"


def _default_cluster_ips(spec: Object) -> None:
    """Let clusterIP and clusterIPs say the same, whichever the client gave."""
    if spec.get("clusterIP") and not spec.get("clusterIPs"):
        spec["clusterIPs"] = [spec["clusterIP"]]
    elif spec.get("clusterIPs"):
        spec.setdefault("clusterIP", spec["clusterIPs"][0])


def _carry_cluster_ips(spec: Object, had: Object) -> None:
    given, before = spec.get("clusterIP", ""), had.get("clusterIP", "")
    unchanged = spec.get("clusterIPs") in (None, [], had.get("clusterIPs"))
    if not given and (not spec.get("clusterIPs") or unchanged):
        spec["clusterIP"] = before
        spec["clusterIPs"] = list(had.get("clusterIPs") or ())
    elif given == before and not spec.get("clusterIPs"):
        spec["clusterIPs"] = list(had.get("clusterIPs") or ())
    elif given and given != before and unchanged:
        # A client that knows clusterIP alone changed it; the list it echoed is out of date.
        spec["clusterIPs"] = [given]


def _carry_families(spec: Object, had: Object) -> None:
    spec.setdefault("ipFamilyPolicy", had.get("ipFamilyPolicy", "SingleStack"))
    if not spec.get("ipFamilies"):
        spec["ipFamilies"] = list(had.get("ipFamilies") or ())
    narrows = spec["ipFamilyPolicy"] == "SingleStack" and had["ipFamilyPolicy"] != "SingleStack"
    if narrows and spec["ipFamilies"] == had["ipFamilies"]:
        spec["ipFamilies"] = spec["ipFamilies"][:1]
    if len(spec["ipFamilies"]) < len(had["ipFamilies"]) and spec["ipFamilyPolicy"] == "SingleStack":
        spec["clusterIPs"] = spec["clusterIPs"][:1]


def _carry_node_ports(spec: Object, had: Object) -> None:
    before = {
        (p.get("protocol", "TCP"), p.get("port")): p["nodePort"]
        for p in had.get("ports") or ()
        if p.get("nodePort")
    }
    ports = spec.get("ports") or ()
    given = {(p.get("protocol", "TCP"), p["nodePort"]) for p in ports if p.get("nodePort")}
    for port in ports:
        protocol = port.get("protocol", "TCP")
        kept = before.get((protocol, port.get("port")))
        if not port.get("nodePort") and kept and (protocol, kept) not in given:
            port["nodePort"] = kept


def _drop_what_the_type_had(spec: Object, had: Object) -> None:
    """Drop what a client sent back unchanged though the new type has no use for it."""

    def drop(name: str) -> None:
        if spec.get(name) == had.get(name):
            spec.pop(name, None)

    if spec["type"] == "ExternalName":
        for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            drop(name)
        drop("internalTrafficPolicy")
    if may_have_node_ports(had) and not may_have_node_ports(spec):
        before = {p.get("nodePort") for p in had.get("ports") or ()}
        for port in spec.get("ports") or ():
            if port.get("nodePort") in before:
                port.pop("nodePort", None)
    if needs_health_check_port(had) and not needs_health_check_port(spec):
        drop("healthCheckNodePort")
    if had["type"] == "LoadBalancer":
        drop("allocateLoadBalancerNodePorts")
        drop("loadBalancerClass")
    if spec["type"] not in _EXTERNAL_TYPES:
        drop("externalTrafficPolicy")
