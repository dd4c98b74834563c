"""Addresses of Services of type LoadBalancer, granted as a cloud does. Nothing here does I/O."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from pyproxy_lab.client import JsonObject
from pyproxy_lab.workloads.plan import Plan, Write

POOL = ipaddress.ip_network("192.0.2.0/24")
"""The addresses, which the lab's outside client routes to its first node."""


def plan(service: JsonObject, services: Iterable[JsonObject]) -> Plan:
    """Grant an address to a Service that has none, or take it back from one of another type.

    `services` are those of the whole cluster, whose addresses are taken. A Service with a
    loadBalancerClass is another program's.
    """
    spec = service["spec"]
    ingress = _ingress(service)
    if spec["type"] != "LoadBalancer":
        return _write(service, []) if ingress else Plan()
    if ingress or spec.get("loadBalancerClass"):
        return Plan()
    taken = {each.get("ip") for other in services for each in _ingress(other)}
    wanted = spec.get("loadBalancerIP", "")
    if wanted and wanted not in taken:
        return _write(service, [{"ip": wanted}])
    for address in POOL.hosts():
        if str(address) not in taken:
            return _write(service, [{"ip": str(address)}])
    return Plan()


def _ingress(service: JsonObject) -> list[JsonObject]:
    found: list[JsonObject] = (service["status"].get("loadBalancer") or {}).get("ingress") or []
    return found


def _write(service: JsonObject, ingress: list[JsonObject]) -> Plan:
    meta = service["metadata"]
    path = f"/api/v1/namespaces/{meta['namespace']}/services/{meta['name']}/status"
    status = {"loadBalancer": {"ingress": ingress or None}}
    return Plan((Write("PATCH", "services", path, {"status": status}),))
