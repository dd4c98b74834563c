"""API objects: nearly valid ones, hostile ones, and arbitrary JSON."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

HOSTILE = [
    "", "\n", "a\nb", '"', "'", "{", "}", ";", "#", "\\", "\\\"", "\0", "\x7f", "\u2028", "\u202e",
    "\U0001f600", "ä" * 200, "a" * 300, "; delete table inet x", '" ; drop ; "', "$(id)", "`id`",
    "}\ntable inet evil {\n}", "10.96.0.1\n", "10.96.0.1; accept", "fd00::1%eth0", "::ffff:1.2.3.4",
    "0x7f.1", "010.0.0.1", "10.0.0.0/8\n", "10.0.0.0/-1", "\u0661.\u0662.\u0663.\u0664",
    "e\u0301", "\ud7ff", "-1",
    "nfproto", "drop", "comment", "@set", "*", "..", "/", "%s%n", "2026-01-01T00:00:00Z",
]  # fmt: skip

JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=10),
        st.sampled_from(HOSTILE),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)

names = st.one_of(st.sampled_from(["web", "shop", "http", "node-a"]), st.sampled_from(HOSTILE))
addresses = st.one_of(
    st.sampled_from(["10.96.0.1", "10.244.1.7", "fd00::1", "None", "0.0.0.0", "127.0.0.1"]),
    st.sampled_from(HOSTILE),
)
numbers = st.one_of(st.integers(-1, 70000), st.sampled_from([2**31, 2**63, 2**64, 10**30]))
labels = st.dictionaries(
    st.one_of(
        st.sampled_from(
            [
                "kubernetes.io/service-name",
                "service.kubernetes.io/headless",
                "service.kubernetes.io/service-proxy-name",
                "topology.kubernetes.io/zone",
            ]
        ),
        names,
    ),
    names,
    max_size=3,
)


def _some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the fields, mostly with a value of the right type."""
    odd = {name: st.one_of(*[of] * 9, JSON) for name, of in fields.items()}
    return st.fixed_dictionaries({}, optional=odd)


metadata = _some(
    name=names, namespace=names, uid=names, resourceVersion=names, labels=labels,
    annotations=labels, creationTimestamp=names, deletionTimestamp=names,
)  # fmt: skip
service_ports = _some(
    name=names, protocol=st.sampled_from(["TCP", "UDP", "SCTP", "tcp", "x\n"]), port=numbers,
    nodePort=numbers, targetPort=numbers,
)  # fmt: skip
specs = _some(
    type=st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName", "\n"]),
    clusterIP=addresses,
    clusterIPs=st.lists(addresses, max_size=3),
    externalIPs=st.lists(addresses, max_size=3),
    ports=st.lists(service_ports, max_size=3),
    ipFamilies=st.lists(st.sampled_from(["IPv4", "IPv6", "{"]), max_size=2),
    loadBalancerSourceRanges=st.lists(addresses, max_size=3),
    internalTrafficPolicy=st.sampled_from(["Cluster", "Local", "\0"]),
    externalTrafficPolicy=st.sampled_from(["Cluster", "Local", '"']),
    sessionAffinity=st.sampled_from(["None", "ClientIP", ";"]),
    sessionAffinityConfig=_some(clientIP=_some(timeoutSeconds=numbers)),
    healthCheckNodePort=numbers,
    podCIDR=addresses,
    podCIDRs=st.lists(addresses, max_size=2),
    taints=st.lists(_some(key=names), max_size=2),
)
status = _some(
    loadBalancer=_some(ingress=st.lists(_some(ip=addresses, ipMode=names), max_size=2)),
    addresses=st.lists(_some(type=names, address=addresses), max_size=2),
)
endpoints = _some(
    addresses=st.lists(addresses, max_size=2),
    conditions=_some(ready=st.booleans(), serving=st.booleans(), terminating=st.booleans()),
    nodeName=names,
    zone=names,
    hints=_some(forZones=st.lists(_some(name=names), max_size=2)),
)
objects = _some(
    apiVersion=st.sampled_from(["v1", "discovery.k8s.io/v1"]),
    kind=st.sampled_from(["Service", "EndpointSlice", "Node", "ServiceList"]),
    metadata=metadata,
    spec=specs,
    status=status,
    addressType=st.sampled_from(["IPv4", "IPv6", "FQDN", "\n"]),
    endpoints=st.lists(endpoints, max_size=3),
    ports=st.lists(service_ports, max_size=2),
    items=st.lists(JSON, max_size=2),
)


@st.composite
def _corrupted(draw: st.DrawFn) -> str:
    text = json.dumps(draw(objects), ensure_ascii=draw(st.booleans()))
    at = draw(st.integers(0, len(text)))
    return (
        text[:at]
        + draw(st.sampled_from(["", '"', "{", "]", "\0", "\\ud800", "1e400"]))
        + (text[at + draw(st.integers(0, 3)) :] if draw(st.booleans()) else "")
    )


corrupted_json = _corrupted()
