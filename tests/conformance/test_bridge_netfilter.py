"""Rejections on a node where br_netfilter passes bridged packets to the rules, and where not.

With br_netfilter the kernel sends a TCP reset past the nat hooks, so that it bears the address that
the packet was translated to. The pods of the lab are on a bridge.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from pyproxy_lab.cluster import Cluster
from pyproxy_lab.conformance import cases
from pyproxy_lab.conformance.cases import Case
from pyproxy_lab.conformance.runner import Runner

from tests.conformance import FOLDER

pytestmark = [pytest.mark.packets, pytest.mark.modes("nftables")]

CASES = cases.read(FOLDER / "18-chained.yaml")
SWITCHES = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables")


@pytest.fixture(scope="module", params=[1, 0], ids=["called", "not called"])
def bridge_netfilter(cluster: Cluster, request: pytest.FixtureRequest) -> None:
    """Set whether bridged packets of the node under test meet the rules."""
    node = cluster.network.namespace("na")
    if not node.call(Path("/proc/sys/net/bridge").is_dir):
        if request.param:
            pytest.skip("this kernel has no br_netfilter")
        return
    node.sysctl({f"bridge/{name}": request.param for name in SWITCHES})


@pytest.mark.usefixtures("bridge_netfilter")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_chained_service_refuses(runner: Runner, case: Case) -> None:
    failures = runner.run(case)
    assert not failures, "\n".join(failures)
