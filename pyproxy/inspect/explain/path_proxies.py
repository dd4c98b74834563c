"""Other proxies that serve the addresses of a Service."""

from __future__ import annotations

from collections.abc import Iterator

from pyproxy.hostnet.not_read import NotRead
from pyproxy.hostnet.proxies import DEVICES, ProxyFacts
from pyproxy.inspect.explain.findings import Finding, doubt, fault, merged
from pyproxy.inspect.explain.step import Step, not_checked
from pyproxy.inspect.facts import Facts
from pyproxy.inspect.humanize import listed

NAME = "proxies"

_FIX = (
    "stop that proxy on this node, then remove its rules: start pyproxy with --takeover, or run "
    "the proxy's own cleanup"
)
_HINTS = {
    "Cilium": "Cilium runs on this node; where it replaces kube-proxy, its eBPF programs translate "
    "before all rules and are not visible here: run cilium-dbg status and look for "
    "KubeProxyReplacement",
    "kube-router": "kube-router runs on this node: check that it runs without --run-service-proxy",
}


def proxies(facts: Facts) -> Step:
    """Check that no other proxy serves the same addresses."""
    part = facts.path.proxies
    if isinstance(part, NotRead):
        return not_checked(NAME, part)
    return merged(NAME, _findings(part), "no other proxy serves these addresses")


def _findings(part: ProxyFacts) -> Iterator[Finding]:
    for each in part.serving:
        yield fault(
            None,
            f"{each.name} serves {listed(list(each.frontends), 3)} too ({each.where}): connections "
            "may go to endpoints that it chose",
            _FIX,
        )
    for device in part.devices:
        yield doubt(None, _HINTS[DEVICES[device]])
    for line in part.unread:
        yield doubt(None, f"not read: {line}")
