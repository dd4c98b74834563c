"""The text of rules is parsed into the values that it was written from."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from msgspec.structs import replace

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.iptables import committed_state
from pyproxy.dataplane.iptables.base_rules import IptablesOptions
from pyproxy.dataplane.iptables.rule_parser import parse_rule
from pyproxy.dataplane.iptables.rules import Rule
from pyproxy.model.address import Family, Mark
from pyproxy.xtables import kube_names
from tests.dataplane.nftables.scenes import Scene, scenes


def without_any_source(rule: Rule) -> Rule:
    """The rule without a source that matches every address, which iptables-save does not print."""
    matches_any = rule.source is not None and not rule.source.prefix and not rule.not_source
    return replace(rule, source=None) if matches_any else rule


@settings(max_examples=30, deadline=None)
@given(scenes())
def test_every_rule_that_is_written_is_parsed(scene: Scene) -> None:
    node = NodeRouting(scene.node.pod_networks, scene.node_port_addresses)
    options = IptablesOptions(
        Mark(1 << 31),
        scene.masquerade_all,
        scene.pod_interface.replace("*", "+"),
        shield_loopback=True,
        counters=kube_names.COUNTERS,
    )
    for family in Family:
        tables = committed_state.compile_all(options, scene.undivided().values(), node, family)
        rules = [rule for chains in tables.values() for each in chains.values() for rule in each]
        assert [parse_rule(rule.text, family) for rule in rules] == list(
            map(without_any_source, rules)
        )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-p tcp",
        "-j LOG",
        "-j DNAT --to-destination 10.0.0.1",
        "-j DNAT --to-destination 10.0.0.1:80 --random",
        "-p icmp -j DROP",
        "-o eth0 -j DROP",
        "-s 10.0.0.1/33 -j DROP",
        "-m mark --mark 0x1/0x2 -j DROP",
        "-m comment --comment a -m comment --comment b -j DROP",
        "-j MARK --set-xmark 0x1/0x3",
        "-j DROP -m comment --comment late",
    ],
)
def test_rules_that_pyproxy_does_not_write_are_not_parsed(text: str) -> None:
    assert parse_rule(text, Family.IPV4) is None
