"""The agent retries the removal of leftovers that are in use, and warns."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pyproxy_lab.modes import NFTABLES
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.network import Network

from tests.exposition import scraped
from tests.semantics.proxied import proxied
from tests.waiting import until

from .scenes import leave

pytestmark = pytest.mark.packets

FAILURES = [
    f'kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{{ip_family="{family}"}}'
    for family in ("IPv4", "IPv6")
]


def test_a_leftover_in_use_is_counted_and_retried(network: Network, tmp_path: Path) -> None:
    here = network.namespace("na")
    leave(here, "nftables")
    here.run(["ipset", "create", "KUBE-CLUSTER-IP", "hash:ip,port"])
    use = ["INPUT", "-m", "set", "--match-set", "KUBE-CLUSTER-IP", "dst,dst", "-j", "RETURN"]
    here.run(["iptables-legacy", "--wait", "-A", *use])
    with proxied(NFTABLES, network, tmp_path / "x", "--takeover") as agent:
        agent.logs("cannot remove leftovers of kube-proxy: ipset KUBE-CLUSTER-IP")
        # Everything else was removed at the first attempt.
        tables = here.run(["nft", "list", "tables"]).stdout
        assert "table inet pyproxy" in tables
        assert "kube-proxy" not in tables
        until(lambda: all(map(here.call(scraped).get, FAILURES)), "the failure is counted")
        here.run(["iptables-legacy", "--wait", "-D", *use])
        agent.logs("removed leftovers of kube-proxy: 1 ipset")
        assert not here.run(["ipset", "list", "-n"]).stdout
        # A proxy that is started again later is not removed.
        agent.reaches("a2", "10.96.255.1:80", "b1")
        assert agent.agent.log.read_text().count("removed leftovers") == 1


def test_without_the_flag_nothing_is_removed(network: Network, tmp_path: Path) -> None:
    here = network.namespace("na")
    leave(here, "nftables")
    with proxied(NFTABLES, network, tmp_path / "x"):
        assert "table ip6 kube-proxy" in here.run(["nft", "list", "tables"]).stdout


@pytest.mark.parametrize("flavour", ["legacy", "nft"])
def test_a_chain_that_now_drops_by_policy_is_warned_of(here: Namespace, flavour: str) -> None:
    leave(here, f"iptables-{flavour}")
    here.run([f"iptables-{flavour}", "--wait", "-P", "FORWARD", "DROP"])
    done = here.run([sys.executable, "-m", "pyproxy", "cleanup", "--takeover"])
    warning = f"iptables-{flavour} filter: chain FORWARD drops by policy"
    assert done.stderr.count(warning) == 1
