"""kube-proxy's feature gates: the one that restricts, and those without effect.

Facts: the gates that kube-proxy v1.36 reads. It does not start with a gate that Kubernetes does not
have; pyproxy names such a gate in a log line, because it does not have the list of all components.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

EXTERNAL_IPS = "AllowServiceExternalIPs"
"""Whether external IPs are proxied (KEP-5707): true by default, and deprecated from the start."""

_ALWAYS = frozenset(
    {
        "KubeProxyDrainingTerminatingNodes",
        "LoadBalancerIPMode",
        "NFTablesProxyMode",
        "PreferSameTrafficDistribution",
        "ProxyTerminatingEndpoints",
        "ServiceInternalTrafficPolicy",
        "ServiceTrafficDistribution",
        "TopologyAwareHints",
    }
)
"""Gates of features that pyproxy always has."""

# AllAlpha and AllBeta set the default of other gates, none of which pyproxy has.
_GROUPS = frozenset({"AllAlpha", "AllBeta"})

Gates = Iterable[tuple[str, bool]]
"""Names and values in the order given; of equal names the last one counts, as in Go."""


def allows_external_ips(gates: Gates) -> bool:
    """Return whether external IPs are proxied."""
    return dict(gates).get(EXTERNAL_IPS, True)


def remarks(gates: Gates) -> Iterator[str]:
    """Yield a log line about the gates without effect, and one about unknown ones."""
    values = dict(gates)
    idle = [name for name, on in values.items() if name in _GROUPS or (name in _ALWAYS and not on)]
    unknown = [name for name in values if name not in {EXTERNAL_IPS} | _ALWAYS | _GROUPS]
    if idle:
        yield f"feature gates without effect: {_text(idle, values)}"
    if unknown:
        yield f"unknown feature gates, without effect: {_text(unknown, values)}"


def _text(names: list[str], values: dict[str, bool]) -> str:
    return ", ".join(f"{name}={str(values[name]).lower()}" for name in sorted(names))
