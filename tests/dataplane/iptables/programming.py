"""Programming a namespace in iptables mode, and reading back what the kernel holds."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.iptables import committed_state
from pyproxy.dataplane.iptables.base_rules import TABLES, IptablesOptions
from pyproxy.dataplane.iptables.dataplane import IptablesDataplane
from pyproxy.dataplane.iptables.plan import IptablesPlan
from pyproxy.model.address import Family, parse_network
from pyproxy.model.flavour import Flavour
from pyproxy.policy.routing import ServiceRouting
from pyproxy.xtables import kube_names
from pyproxy.xtables.programs import Programs
from pyproxy.xtables.saved import HOOKS

NODE = NodeRouting((parse_network("10.128.0.0/9"),))
Texts = dict[tuple[str, str], list[str]]


@contextmanager
def programming(
    namespace: Namespace,
    flavour: Flavour | None,
    options: IptablesOptions = IptablesOptions(),  # noqa: B008
) -> Iterator[IptablesDataplane]:
    made = namespace.call(lambda: IptablesDataplane(options, flavour))
    try:
        yield made
    finally:
        made.close()


def program(
    namespace: Namespace,
    dataplane: IptablesDataplane,
    routings: Sequence[ServiceRouting],
    node: NodeRouting = NODE,
) -> IptablesPlan:
    """Read the kernel back, write the whole desired state, and return the plan."""
    plan = namespace.call(lambda: dataplane.plan_full(routings, node))
    assert namespace.call(lambda: dataplane.commit(plan)) == ()
    assert namespace.call(dataplane.tick) is None
    return plan


def held(namespace: Namespace, flavour: Flavour, family: Family = Family.IPV4) -> Texts:
    """Return the rules of pyproxy's chains in the kernel, and of built-in chains that have any."""
    saved = namespace.call(Programs(family, flavour).save)
    return {
        (table, chain): list(texts)
        for table, each in saved.items()
        for chain, texts in each.chains.items()
        if kube_names.is_iptables_mode(chain) or (chain in HOOKS and texts)
    }


def desired(routings: Sequence[ServiceRouting], node: NodeRouting, family: Family) -> Texts:
    tables = committed_state.compile_all(IptablesOptions(), routings, node, family)
    return {
        (table, chain): [rule.text for rule in rules]
        for table in TABLES
        for chain, rules in tables[table].items()
    }


def run(namespace: Namespace, *command: str, text: str = "") -> None:
    namespace.call(lambda: subprocess.run(command, input=text, text=True, check=True))
