"""The trees of a family: cluster IPs that several ports share, and unchanged chains."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyproxy.dataplane.iptables.base_rules import FILTER, NAT
from pyproxy.dataplane.iptables.frontend_trees import FrontendTrees
from pyproxy.dataplane.iptables.rules import DROP, Rule
from pyproxy.dataplane.iptables.services import Part
from pyproxy.dataplane.iptables.tree import number
from pyproxy.model.address import Family, Port, Protocol, parse_address
from pyproxy.xtables import kube_names

ADDRESS = parse_address("10.96.0.1")
REJECT = f"-d 10.96.0.1/32 -g {kube_names.REFUSE}"


def part(port: int) -> Part:
    place = number(ADDRESS, Protocol.TCP, Port(port))
    return Part(served={place: Rule(target=DROP)}, cluster_ips={ADDRESS})


def rejected(trees: FrontendTrees) -> bool:
    return any(rule.text == REJECT for rule in trees.chains[FILTER][kube_names.SERVICES])


def test_other_ports_of_a_cluster_ip_are_rejected_as_long_as_a_service_has_it() -> None:
    none = FrontendTrees(Family.IPV4)
    two = none.changed((), (part(80), part(443)))
    one = two.changed((part(443),), ())
    assert [rejected(each) for each in (none, two, one, one.changed((part(80),), ()))] == [
        False,
        True,
        True,
        False,
    ]
    assert len(one.chains[NAT][kube_names.SERVICES]) == 1


def owned(owner: int) -> Part:
    """A Service's frontend at an address that all these Services have."""
    place = number(ADDRESS, Protocol.TCP, Port(80))
    return Part(served={place: Rule(comment=f"s{owner}", target=DROP)})


@given(st.lists(st.integers(0, 3), min_size=1))
def test_a_frontend_that_several_services_have_stays_until_the_last_one_goes(
    toggled: list[int],
) -> None:
    """A rejected Service keeps a frontend that another one has now."""
    trees, owners = FrontendTrees(Family.IPV4), list[int]()
    for each in toggled:
        if each in owners:
            owners.remove(each)
            trees = trees.changed((owned(each),), ())
        else:
            owners.append(each)
            trees = trees.changed((), (owned(each),))
        texts = [rule.text for rule in trees.chains[NAT][kube_names.SERVICES]]
        assert texts == [f"-m comment --comment s{owner} -j DROP" for owner in owners[-1:]]


def test_a_change_that_leaves_the_frontends_keeps_the_chains() -> None:
    trees = FrontendTrees(Family.IPV4).changed((), (part(80),))
    chains = trees.chains
    assert trees.changed((part(80),), (part(80),)).chains is chains
