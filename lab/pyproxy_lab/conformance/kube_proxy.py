"""Which release of kube-proxy has what a case requires.

Facts: the feature gates in pkg/features/kube_features.go of Kubernetes, of which each counts from
the release that has it on by default, and runs of the cases against kube-proxy 1.20, 1.26 and 1.30.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Self

import msgspec

from pyproxy.errors import UsageError

_RELEASE = re.compile(r"v?1\.(\d{1,3})(\.\d+)?")


class Release(msgspec.Struct, frozen=True, order=True):
    """A minor release of Kubernetes 1."""

    minor: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `1.30`, `v1.30` or `1.30.5`. Raises UsageError."""
        found = _RELEASE.fullmatch(text)
        if found is None:
            raise UsageError(f"--kube-proxy {text}: write a release such as 1.30")
        return cls(int(found[1]))

    def __str__(self) -> str:
        return f"1.{self.minor}"


NEWEST_TESTED = Release(30)


class Feature(msgspec.Struct, frozen=True):
    """A behaviour of kube-proxy `since` a release; None if `NEWEST_TESTED` does not have it yet.

    `without` are the proxy modes that do not have it in any tested release.
    """

    what: str
    since: Release | None = None
    without: tuple[str, ...] = ()


FEATURES: Mapping[str, Feature] = {
    "external-ips-from-inside": Feature("external IPs for pods and the node", Release(21)),
    "stale-external-flows": Feature("UDP clients that came before an external IP", Release(21)),
    "ServiceInternalTrafficPolicy": Feature("internalTrafficPolicy (KEP 2086)", Release(22)),
    "node-port-in-use": Feature("node ports that a program listens on, too", Release(24)),
    "ProxyTerminatingEndpoints": Feature("fallback to serving endpoints (KEP 1669)", Release(26)),
    "serviceProxyHealthy": Feature("the field in health checks (KEP 3836)", Release(27)),
    "livez": Feature("/livez, and nodeEligible in /healthz (KEP 3836)", Release(28)),
    "external-ip-policy": Feature("externalTrafficPolicy of ClusterIP Services", Release(29)),
    "LoadBalancerIPMode": Feature("ipMode of a load balancer address (KEP 1860)", Release(30)),
    "ServiceTrafficDistribution": Feature("hints without an annotation (KEP 4444)", Release(31)),
    "PreferSameTrafficDistribution": Feature("node hints (KEP 3015)", Release(34)),
    "new-service-flows": Feature(
        "stale UDP flows are cut whichever of Service and slice is first, and no new ones"
    ),
    "unserving-endpoint-flows": Feature("UDP flows leave an endpoint that is listed as not ready"),
    "removed-port-flows": Feature("UDP flows end with the port of the Service"),
    "endpoint-in-two-slices": Feature("one of the conditions of the same endpoint decides"),
    "oldest-service-first": Feature("of Services with one frontend, the oldest has it"),
    "ranges-of-one-family": Feature("source ranges of IPv6 alone admit no IPv4 client"),
    "health-check-per-family": Feature("a health check node port counts each family by itself"),
    "external-rejection-on-node": Feature(
        "the node itself is rejected at external addresses too", Release(20), ("iptables",)
    ),
}
"""By the names in `requires` of cases, which are those of feature gates where there is one."""


def lacking(requires: Iterable[str], release: Release, mode: str) -> str:
    """Return which required feature a release lacks in a proxy mode; empty if it has all.

    A release that is newer than `NEWEST_TESTED` counts as having what that one has not.
    """
    for name in requires:
        feature = FEATURES[name]
        if mode in feature.without and release <= NEWEST_TESTED:
            return f"kube-proxy {NEWEST_TESTED} has no {name} in {mode} mode: {feature.what}"
        if feature.since is None and release <= NEWEST_TESTED:
            return f"kube-proxy {NEWEST_TESTED} has no {name}: {feature.what}"
        if feature.since is not None and release < feature.since:
            return f"kube-proxy has {name} since {feature.since}: {feature.what}"
    return ""
