"""Base rules: their dependence on options and on the networks of pods."""

from __future__ import annotations

import pytest

from pyproxy.dataplane.iptables.base_rules import (
    FILTER,
    MANGLE,
    NAT,
    IptablesOptions,
    base_chains,
    jumps,
    pods_of,
)
from pyproxy.model.address import Family, Network, parse_network
from pyproxy.xtables import kube_names
from pyproxy.xtables.saved import HOOKS

NETWORKS = (parse_network("10.244.0.0/16"), parse_network("fd10::/16"))


def test_pods_are_recognised_by_their_interface_or_else_by_their_networks() -> None:
    assert pods_of(Family.IPV4, IptablesOptions(), NETWORKS).networks == NETWORKS[:1]
    assert pods_of(Family.IPV6, IptablesOptions(), NETWORKS).networks == NETWORKS[1:]
    by_interface = pods_of(Family.IPV4, IptablesOptions(pod_interface="veth+"), NETWORKS)
    assert (by_interface.interface, by_interface.networks) == ("veth+", ())


@pytest.mark.parametrize("networks", [(), NETWORKS])
def test_nothing_is_masqueraded_for_its_source_if_pods_are_unknown(
    networks: tuple[Network, ...],
) -> None:
    options = IptablesOptions()
    pods = pods_of(Family.IPV4, options, networks)
    chains = base_chains(Family.IPV4, options, pods)
    assert bool(chains[NAT][kube_names.MARK_EXTERNAL]) is pods.are_known is bool(networks)


def test_loopback_is_shielded_only_with_the_option() -> None:
    for shield in (False, True):
        options = IptablesOptions(shield_loopback=shield)
        chains = base_chains(Family.IPV4, options, pods_of(Family.IPV4, options, NETWORKS))
        assert (kube_names.FIREWALL in chains[MANGLE]) is shield
        assert any(table == MANGLE for table, _, _ in jumps(options)) is shield


def test_jumps_lead_from_built_in_chains_to_base_chains_that_exist() -> None:
    options = IptablesOptions(shield_loopback=True)
    chains = base_chains(Family.IPV4, options, pods_of(Family.IPV4, options, NETWORKS))
    roots = {(FILTER, kube_names.SERVICES), (FILTER, kube_names.EXTERNAL_SERVICES)}
    roots.add((NAT, kube_names.SERVICES))
    for table, hook, rule in jumps(options):
        to = rule.target.text.split()[-1]
        assert hook in HOOKS
        assert to in chains[table] or (table, to) in roots
        assert to in kube_names.ENTRIES
