"""An agent in iptables mode beside rules of nft that iptables-nft-save cannot print."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyproxy_lab.modes import IPTABLES_NFT
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.network import Network

from tests.exposition import scraped
from tests.waiting import until

from .proxied import endpoint_slice, proxied, service

pytestmark = pytest.mark.packets

CLUSTER_IP = "10.96.0.1"
WEB = (service("web", CLUSTER_IP), endpoint_slice("web", "b1"))
RULES = (
    "ip nat POSTROUTING oifname nosuch masquerade",
    "ip nat POSTROUTING oifname nosuch snat to 192.0.2.1",
    "ip filter INPUT ct mark 5 reject",
    "ip6 nat PREROUTING ct mark 5 accept",
)
JUMPS = {("nat", "PREROUTING"): 1, ("nat", "OUTPUT"): 1, ("filter", "FORWARD"): 3}
FULL_SYNCS = "kubeproxy_sync_full_proxy_rules_duration_seconds_count"
REPAIRS = "pyproxy_drift_repairs_total"


def _wait_for_full_sync(here: Namespace, before: float) -> None:
    until(lambda: _total(here, FULL_SYNCS) > before, "a full sync")


def _total(here: Namespace, name: str) -> float:
    found = here.call(scraped)
    return sum(value for key, value in found.items() if key.startswith(name))


def _jumps(here: Namespace, table: str, hook: str) -> int:
    listing = here.run(["nft", "list", "chain", "ip", table, hook]).stdout
    return listing.count("KUBE-")


def test_the_agent_serves_and_repairs_nothing(network: Network, tmp_path: Path) -> None:
    here = network.namespace("na")
    with proxied(IPTABLES_NFT, network, tmp_path / "x", objects=WEB) as agent:
        agent.reaches("a2", f"{CLUSTER_IP}:80", "b1")
        for rule in RULES:
            before = _total(here, FULL_SYNCS)
            # The kernel notifies the agent of the rule, and the agent reads the tables back.
            here.run(["nft", f"add rule {rule}"])
            _wait_for_full_sync(here, before)
        agent.apply(endpoint_slice("web", "a1"))
        agent.reaches("a2", f"{CLUSTER_IP}:80", "a1")
        agent.delete("EndpointSlice", "web-ipv4")
        agent.is_refused("a2", f"{CLUSTER_IP}:80")
        agent.apply(endpoint_slice("web", "b1"))
        agent.reaches("a2", f"{CLUSTER_IP}:80", "b1")
        assert {place: _jumps(here, *place) for place in JUMPS} == JUMPS
        assert _total(here, REPAIRS) == 0
