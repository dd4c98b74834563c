"""The programs that tables and chains look like."""

from __future__ import annotations

import pytest

from pyproxy.hostnet.firewall.owners import UNKNOWN, owner_of

NAMES = {
    ("inet firewalld", "filter_FORWARD"): "firewalld",
    ("ip filter", "ufw-reject-forward"): "ufw",
    ("iptables-legacy filter", "ufw-user-forward"): "ufw",
    ("ip6 filter", "ufw6-user-input"): "ufw",
    ("ip filter", "DOCKER-USER"): "docker",
    ("ip docker-bridges", "filter-FORWARD"): "docker",
    ("ip filter", "cali-FORWARD"): "Calico",
    ("ip calico", "filter-cali-FORWARD"): "Calico",
    ("inet calico", "filter-FORWARD"): "Calico",
    ("iptables-legacy filter", "CILIUM_FORWARD"): "Cilium",
    ("ip nat", "OLD_CILIUM_PRE_nat"): "Cilium",
    ("ip filter", "KUBE-ROUTER-FORWARD"): "kube-router's network policy",
    ("ip filter", "KUBE-NWPLCY-ABC"): "kube-router's network policy",
    ("ip filter", "KUBE-FIREWALL"): "kubelet",
    ("ip mangle", "KUBE-KUBELET-CANARY"): "kubelet",
    ("ip filter", "LIBVIRT_FWI"): "libvirt",
    ("ip libvirt_network", "guest_input"): "libvirt",
    ("inet f2b-table", "f2b-chain"): "fail2ban",
    ("ip filter", "f2b-sshd"): "fail2ban",
    ("inet filter", "forward"): "/etc/nftables.conf",
    ("ip kube-proxy", "filter-forward"): "kube-proxy",
    ("inet kindnet-network-policies", "forward"): "kube-network-policies",
}


@pytest.mark.parametrize(("names", "owner"), NAMES.items(), ids=map(" ".join, NAMES))
def test_an_owner(names: tuple[str, str], owner: str) -> None:
    assert owner_of(*names).name == owner


@pytest.mark.parametrize(
    "names", [("inet mine", "forward"), ("ip filter", "FORWARD"), ("ip filter", "KUBE-FORWARD")]
)
def test_other_names_are_of_no_known_program(names: tuple[str, str]) -> None:
    assert owner_of(*names) is UNKNOWN


@pytest.mark.parametrize(
    ("names", "misses"),
    {
        ("ip filter", "cali-FORWARD"): "a policy that changes later",
        ("inet calico", "filter-FORWARD"): "a policy that changes later",
        ("iptables-legacy filter", "KUBE-ROUTER-FORWARD"): "a policy that changes later",
        ("ip filter", "WEAVE-NPC"): "a policy that changes later",
        ("ip filter", "ANTREA-FORWARD"): "a policy that changes later",
        ("inet kube-network-policies", "postrouting"): "a policy that changes later",
        ("inet firewalld", "filter_FORWARD"): "a policy that changes later",
        ("ip6 filter", "ufw6-before-forward"): "a policy that changes later",
        ("ip filter", "CILIUM_FORWARD"): "marks",
    }.items(),
)
def test_a_policy_engine_misses_offloaded_packets(names: tuple[str, str], misses: str) -> None:
    assert misses in owner_of(*names).offloaded


@pytest.mark.parametrize(
    "names",
    [("ip filter", "DOCKER-USER"), ("ip filter", "KUBE-FIREWALL"), ("inet mine", "forward")],
)
def test_other_programs_decide_nothing_about_established_connections(
    names: tuple[str, str],
) -> None:
    assert not owner_of(*names).offloaded
