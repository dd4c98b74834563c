"""The names are kube-proxy's: held against what it left in a kernel."""

from __future__ import annotations

import pytest

from pyproxy.dataplane.iptables import names
from pyproxy.dataplane.iptables.saved import parse
from pyproxy.model.address import Port, Protocol, backend, parse_address, parse_network
from pyproxy.model.objects import ObjectName
from tests.takeover.scenes import IPTABLES

WEB, DNS = ObjectName("conformance", "web"), ObjectName("conformance", "dns")


@pytest.mark.parametrize(
    "name",
    [
        names.service(names.port_digest(WEB, "", Protocol.TCP)),
        names.local(names.port_digest(WEB, "", Protocol.TCP)),
        names.external(names.port_digest(WEB, "", Protocol.TCP)),
        names.firewall(names.port_digest(WEB, "", Protocol.TCP)),
        names.service(names.port_digest(DNS, "dns", Protocol.UDP)),
        names.endpoint(WEB, "", Protocol.TCP, backend(parse_address("10.244.1.11"), Port(8080))),
        names.endpoint(DNS, "dns", Protocol.UDP, backend(parse_address("10.244.2.12"), Port(8080))),
    ],
)
def test_a_chain_has_the_name_that_kube_proxy_gives_it(name: str) -> None:
    assert name in parse(IPTABLES)["nat"].chains


def test_kube_proxys_chains_are_ours_and_kubelets_are_not() -> None:
    tables = parse(IPTABLES)
    foreign = {
        chain
        for table in tables.values()
        for chain in table.chains
        if not names.is_ours(chain) and not chain.isalpha()
    }
    assert foreign == {"KUBE-FIREWALL"}
    assert not names.is_ours("KUBE-KUBELET-CANARY")
    assert not names.is_ours("KUBE-IPTABLES-HINT")
    assert not names.is_ours("KUBE-MARK-DROP")


@pytest.mark.parametrize("tree", [names.SERVICE_TREE, names.REFUSED_TREE])
@pytest.mark.parametrize("network", ["255.255.255.255/32", "fd00:10:96::/108"])
def test_a_branch_has_a_name_that_the_kernel_takes(tree: str, network: str) -> None:
    name = names.branch(tree, parse_network(network))
    assert len(name) <= 28
    assert ":" not in name
    assert names.is_ours(name)
