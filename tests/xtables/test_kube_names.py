"""The table of KUBE- names, compared with what kube-proxy wrote to a kernel."""

from __future__ import annotations

import pytest

from pyproxy.xtables import kube_names
from pyproxy.xtables.saved import parse
from tests.takeover.scenes import IPTABLES


def test_iptables_mode_has_kube_proxys_chains_and_none_of_kubelets() -> None:
    foreign = {
        chain
        for table in parse(IPTABLES).values()
        for chain in table.chains
        if not kube_names.is_iptables_mode(chain) and not chain.isalpha()
    }
    assert foreign == {"KUBE-FIREWALL"}
    assert not kube_names.is_iptables_mode("KUBE-KUBELET-CANARY")
    assert not kube_names.is_iptables_mode("KUBE-IPTABLES-HINT")
    assert not kube_names.is_iptables_mode("KUBE-MARK-DROP")


@pytest.mark.parametrize(
    ("table", "chain"),
    [
        ("nat", "KUBE-MARK-OUTSIDE"),
        ("nat", "KUBE-IP-10.96.0.0/16"),
        ("filter", "KUBE-NO-10.96.0.0/16"),
        ("filter", "KUBE-REFUSE"),
        ("filter", "KUBE-FW-AAAAAAAAAAAAAAAA"),
        ("mangle", "KUBE-PROXY-FIREWALL"),
    ],
)
def test_chains_that_only_pyproxy_has_are_told_from_kube_proxys(table: str, chain: str) -> None:
    assert kube_names.is_pyproxy(table, chain)
    assert kube_names.is_owned(table, chain)
    assert kube_names.is_iptables_mode(chain)


def test_sets_have_names_that_ipset_accepts() -> None:
    assert all(len(name) <= 31 for name in kube_names.SETS)
    assert {
        "KUBE-CLUSTER-IP",
        "KUBE-6-CLUSTER-IP",
        "KUBE-6-LOAD-BALANCER-SOURCE-CID",
    } <= kube_names.SETS
