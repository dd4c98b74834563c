"""Names of chains, compared with those that kube-proxy wrote to a kernel."""

from __future__ import annotations

import pytest

from pyproxy.dataplane.iptables import chain_names
from pyproxy.model.address import Port, Protocol, backend, parse_address, parse_network
from pyproxy.model.objects import ObjectName
from pyproxy.xtables import kube_names
from pyproxy.xtables.saved import parse
from tests.takeover.scenes import IPTABLES

WEB, DNS = ObjectName("conformance", "web"), ObjectName("conformance", "dns")


@pytest.mark.parametrize(
    "name",
    [
        chain_names.service(chain_names.port_digest(WEB, "", Protocol.TCP)),
        chain_names.local(chain_names.port_digest(WEB, "", Protocol.TCP)),
        chain_names.external(chain_names.port_digest(WEB, "", Protocol.TCP)),
        chain_names.source_ranges(chain_names.port_digest(WEB, "", Protocol.TCP)),
        chain_names.service(chain_names.port_digest(DNS, "dns", Protocol.UDP)),
        chain_names.endpoint(
            WEB, "", Protocol.TCP, backend(parse_address("10.244.1.11"), Port(8080))
        ),
        chain_names.endpoint(
            DNS, "dns", Protocol.UDP, backend(parse_address("10.244.2.12"), Port(8080))
        ),
    ],
)
def test_a_chain_has_kube_proxys_name(name: str) -> None:
    assert name in parse(IPTABLES)["nat"].chains


@pytest.mark.parametrize("tree", [kube_names.SERVICE_TREE, kube_names.REFUSED_TREE])
@pytest.mark.parametrize("network", ["255.255.255.255/32", "fd00:10:96::/108"])
def test_a_branch_has_a_name_that_the_kernel_accepts(tree: str, network: str) -> None:
    name = chain_names.branch(tree, parse_network(network))
    assert len(name) <= 28
    assert ":" not in name
    assert kube_names.is_iptables_mode(name)
