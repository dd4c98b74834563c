"""A rule that another program replaces, in a base chain or in one that was made on demand."""

from collections.abc import Iterator

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.nft.loader import read_layout
from pyproxy.dataplane.nftables import chains
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.model.address import Family
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM
from tests.builders import endpoint_slice, service
from tests.chaos.kernel_agent import SteppedAgent
from tests.namespaces import empty_namespace

pytestmark = pytest.mark.kernel

KINDS = [
    chains.picking(which, family, size, masquerade=masquerade, affinity=affinity)
    for which in (chains.CLUSTER, chains.LOCAL)
    for family in Family
    for size in (1, 2, 16)
    for masquerade in (False, True)
    for affinity in (False, True)
] + [
    chains.learning(family, timeout, share)
    for family in Family
    for timeout, share in ((1, 1), (7, 4096), (86_400, 16))
]


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with empty_namespace("drift") as made:
        yield made


def test_every_kind_of_chain_is_recognized_as_it_was_written(namespace: Namespace) -> None:
    agent = SteppedAgent(namespace, lambda: 100.0)
    agent.start()
    names = chains.needed(KINDS)
    netlink = namespace.call(Nfnetlink)
    messages = [message for name in names for message in chains.chain(name)]
    assert not netlink.transact(messages, SUBSYSTEM)
    assert chains.complete_chains(read_layout(netlink, TABLE)) == set(names)
    netlink.close()
    agent.close()


def test_the_order_of_base_rules_is_compared(namespace: Namespace) -> None:
    agent = SteppedAgent(namespace, lambda: 100.0)
    agent.start()
    chain = ["chain", "inet", "pyproxy", "services"]
    listed = namespace.run(["nft", "-a", "list", *chain]).stdout
    rule, _, handle = listed.splitlines()[2].strip().partition(" # handle ")
    namespace.run(["nft", "delete", "rule", *chain[1:], "handle", handle])
    namespace.run(["nft", "add", "rule", *chain[1:], rule])
    node = agent.agent.node_routing
    (line,) = namespace.call(lambda: agent.dataplane.check_base_rules(node))
    assert line == "replace the rules of chain services: their order or number differs"
    agent.close()


@pytest.mark.parametrize(
    "harm",
    [
        "replace rule inet pyproxy cluster4-2 handle {last} drop",
        "delete rule inet pyproxy cluster4-2 handle {last}; "
        "add rule inet pyproxy cluster4-2 accept",
        # The same rules in another order: the first draw would find slot 0 alone.
        "insert rule inet pyproxy cluster4-2 goto cluster4-1; "
        "delete rule inet pyproxy cluster4-2 handle {last}",
    ],
)
def test_a_replaced_rule_is_repaired(namespace: Namespace, harm: str) -> None:
    now = 100.0
    agent = SteppedAgent(namespace, lambda: now)
    whole = agent.start(
        service("web", 1),
        endpoint_slice("web", ["10.244.1.5", "10.244.1.6"]),
        service("api", 2),
        endpoint_slice("api", ["10.244.1.7"]),
    )
    listed = namespace.run(["nft", "-a", "list", "chain", "inet", "pyproxy", "cluster4-2"]).stdout
    last = listed.rpartition("handle ")[2].split()[0]
    namespace.run(["nft", harm.replace("{last}", last)])
    drift = namespace.call(agent.dataplane.wait_for_drift)
    assert drift is not None
    agent.agent.drifted(drift)
    now += 60.0
    namespace.call(agent.agent.sync)
    assert agent.repairs() == {"chain": 1}
    assert agent.snapshot() == whole
    agent.close()


def test_a_dormant_table_is_repaired(namespace: Namespace) -> None:
    now = 100.0
    agent = SteppedAgent(namespace, lambda: now)
    whole = agent.start(service("web", 1), endpoint_slice("web", ["10.244.1.5"]))
    namespace.run(["nft", "add table inet pyproxy { flags dormant; }"])
    found = namespace.call(lambda: agent.dataplane.check_base_rules(agent.agent.node_routing))
    assert found == ("clear the flags of table inet pyproxy, such as dormant",)
    drift = namespace.call(agent.dataplane.wait_for_drift)
    assert drift is not None
    agent.agent.drifted(drift)
    now += 60.0
    namespace.call(agent.agent.sync)
    assert "dormant" not in namespace.run(["nft", "list", "table", "inet", "pyproxy"]).stdout
    assert agent.snapshot() == whole
    agent.close()
