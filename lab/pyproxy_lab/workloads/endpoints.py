"""Endpoints, which are deprecated, made of a Service's EndpointSlices. Nothing here does I/O."""

from __future__ import annotations

from collections.abc import Iterable

from pyproxy_lab.client import JsonObject
from pyproxy_lab.workloads.plan import Plan, Write, collection, delete, path_of

MANAGED_BY = "endpoints.kubernetes.io/managed-by"
CONTROLLER = "endpoint-controller"
_FIELDS = ("addresses", "notReadyAddresses", "ports")
_MOST = 1000
"""Addresses that one object has at most, as in Kubernetes."""


def plan(
    service: JsonObject | None,
    slices: Iterable[JsonObject],
    existing: JsonObject | None,
) -> Plan:
    """Compare a Service's Endpoints with its slices.

    Endpoints of a Service without a selector are their author's. Those of a Service that is gone
    are deleted.
    """
    if service is None:
        return Plan((delete("endpoints", existing),)) if existing else Plan()
    if not service["spec"].get("selector") or service["spec"]["type"] == "ExternalName":
        return Plan()
    meta = service["metadata"]
    family = (service["spec"].get("ipFamilies") or ["IPv4"])[0]
    labels = {**(meta.get("labels") or {}), MANAGED_BY: CONTROLLER}
    subsets = _subsets([each for each in slices if each["addressType"] == family])
    wanted: JsonObject = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": meta["name"], "namespace": meta["namespace"], "labels": labels},
    }
    if subsets:
        wanted["subsets"] = subsets
    if existing is None:
        return Plan(
            (Write("POST", "endpoints", collection("endpoints", meta["namespace"]), wanted),)
        )
    same = existing.get("subsets", []) == subsets
    if same and existing["metadata"].get("labels") == labels:
        return Plan()
    return Plan((Write("PUT", "endpoints", path_of("endpoints", existing), wanted),))


def _subsets(slices: list[JsonObject]) -> list[JsonObject]:
    """Return a subset for each set of ports, with ready addresses apart from others."""
    found: dict[str, JsonObject] = {}
    count = 0
    for each in sorted(slices, key=lambda each: str(each["metadata"]["name"])):
        ports = [
            {k: port[k] for k in ("name", "port", "protocol", "appProtocol") if port.get(k)}
            for port in each.get("ports") or ()
        ]
        subset = found.setdefault(str(ports), {"ports": ports})
        for endpoint in each.get("endpoints") or ():
            conditions = endpoint.get("conditions") or {}
            if conditions.get("terminating") or count >= _MOST:
                continue
            name = "addresses" if conditions.get("ready", True) else "notReadyAddresses"
            address = {"ip": endpoint["addresses"][0]}
            for field in ("hostname", "nodeName", "targetRef"):
                if endpoint.get(field):
                    address[field] = endpoint[field]
            subset.setdefault(name, []).append(address)
            count += 1
    made: list[JsonObject] = []
    for subset in found.values():
        for name in ("addresses", "notReadyAddresses"):
            if name in subset:
                subset[name].sort(key=lambda address: str(address["ip"]))
        if len(subset) > 1:
            made.append({k: subset[k] for k in _FIELDS if k in subset})
    return made
