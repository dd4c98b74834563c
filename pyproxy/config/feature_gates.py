"""kube-proxy's feature gates: the one that restricts, those without effect, and their stages.

Facts: the gates of Services and of kube-proxy in Kubernetes v1.36 and in older versions. With a
gate that Kubernetes does not have, kube-proxy does not start. Because pyproxy does not have the
list of all components, it names such a gate in a log line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum

import msgspec

EXTERNAL_IPS = "AllowServiceExternalIPs"
"""Whether external IPs are proxied (KEP-5707): true by default, and deprecated from the start."""


class Stage(StrEnum):
    """How mature a feature is, as the metric kubernetes_feature_enabled has it."""

    ALPHA = "ALPHA"
    BETA = "BETA"
    STABLE = ""
    DEPRECATED = "DEPRECATED"


# They set the default of other gates, none of which pyproxy has.
_GROUPS = {"AllAlpha": Stage.ALPHA, "AllBeta": Stage.BETA}

_ALWAYS = {
    "NFTablesProxyMode": Stage.STABLE,
    "PreferSameTrafficDistribution": Stage.STABLE,
    "ServiceTrafficDistribution": Stage.STABLE,
    "TopologyAwareHints": Stage.STABLE,
}
"""Gates of features that pyproxy always has. Kubernetes refuses to turn a stable feature off."""

_FORMER = frozenset(
    {
        "KubeProxyDrainingTerminatingNodes",
        "LoadBalancerIPMode",
        "ProxyTerminatingEndpoints",
        "ServiceInternalTrafficPolicy",
    }
)
"""Gates that Kubernetes had until their feature was stable; pyproxy always has the features."""


class GateState(msgspec.Struct, frozen=True):
    """A gate of Kubernetes v1.36 that pyproxy knows, and whether its feature is on."""

    name: str
    stage: Stage
    enabled: bool


Gates = Iterable[tuple[str, bool]]
"""Names and values in the order given; of equal names the last one counts, as in Go."""


def allows_external_ips(gates: Gates) -> bool:
    """Return whether external IPs are proxied."""
    return dict(gates).get(EXTERNAL_IPS, True)


def states(gates: Gates) -> Iterator[GateState]:
    """Yield the state of each known gate, whether it was given or not."""
    values = dict(gates)
    for name, stage in _GROUPS.items():
        yield GateState(name, stage, values.get(name, False))
    yield GateState(EXTERNAL_IPS, Stage.DEPRECATED, allows_external_ips(gates))
    for name, stage in _ALWAYS.items():
        yield GateState(name, stage, enabled=True)


def remarks(gates: Gates) -> Iterator[str]:
    """Yield a log line about the gates without effect, and one about unknown ones."""
    values = dict(gates)
    always = _ALWAYS.keys() | _FORMER
    idle = [name for name, on in values.items() if name in _GROUPS or (name in always and not on)]
    unknown = values.keys() - always - _GROUPS.keys() - {EXTERNAL_IPS}
    if idle:
        yield f"feature gates without effect: {_text(idle, values)}"
    if unknown:
        yield f"unknown feature gates, without effect: {_text(unknown, values)}"


def _text(names: Iterable[str], values: dict[str, bool]) -> str:
    return ", ".join(f"{name}={str(values[name]).lower()}" for name in sorted(names))
