"""Connections are counted by the rules in nat; the kernel keeps the counters that are restored."""

from __future__ import annotations

import subprocess

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.connections import Counted
from pyproxy.dataplane.iptables.counters import IptablesCounters
from pyproxy.errors import UsageError
from pyproxy.model.flavour import Flavour

pytestmark = pytest.mark.kernel

TABLE = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-IP-10.96.0.0/28 - [0:0]
:KUBE-SVC-WEB - [0:0]
:KUBE-SVC-WEB-0 - [0:0]
:KUBE-SEP-A - [0:0]
:KUBE-SVC-DNS - [0:0]
:KUBE-SVC-OTHER - [0:0]
[9:540] -A KUBE-SERVICES -d 10.96.0.0/28 -g KUBE-IP-10.96.0.0/28
[2:120] -A KUBE-SERVICES -d 10.96.1.1/32 -p udp -m comment --comment "shop/dns" -m udp --dport 53 -g KUBE-SVC-DNS
[4:240] -A KUBE-SERVICES -d 10.96.9.9/32 -p tcp -m comment --comment "other/proxy cluster IP" -m tcp --dport 80 -j KUBE-SVC-OTHER
[7:420] -A KUBE-IP-10.96.0.0/28 -d 10.96.0.1/32 -p tcp -m comment --comment "shop/web:http" -m tcp --dport 80 -g KUBE-SVC-WEB
[3:180] -A KUBE-SVC-WEB -m statistic --mode random --probability 0.50000000000 -g KUBE-SVC-WEB-0
[4:240] -A KUBE-SVC-WEB -g KUBE-SEP-A
[3:180] -A KUBE-SVC-WEB-0 -p tcp -j DNAT --to-destination 10.244.1.12:8080
[4:240] -A KUBE-SEP-A -p tcp -j DNAT --to-destination 10.244.1.11:8080
[2:120] -A KUBE-SVC-DNS -p udp -j DNAT --to-destination 10.244.1.13:53
COMMIT
"""  # noqa: E501
WEB, DNS = "shop/web:http", "shop/dns"


@pytest.fixture
def counters(namespace: Namespace, flavour: Flavour) -> IptablesCounters:
    command = [f"iptables-{flavour.value}-restore", "--wait", "-c"]
    namespace.call(lambda: subprocess.run(command, input=TABLE, text=True, check=True))
    return IptablesCounters(flavour)


def test_frontends_of_pyproxy_are_counted_and_no_others(
    namespace: Namespace, counters: IptablesCounters
) -> None:
    totals = namespace.call(counters.services)
    assert totals.since(None) == {Counted(WEB): 7, Counted(DNS): 2}
    assert namespace.call(lambda: counters.services(WEB)).since(None) == {Counted(WEB): 7}


@pytest.mark.parametrize("everything", [True, False])
def test_endpoints_are_counted_behind_groups_and_chains_of_their_own(
    namespace: Namespace, counters: IptablesCounters, everything: bool
) -> None:
    def read(wanted: str) -> dict[Counted, int]:
        services = counters.services(wanted)
        return counters.endpoints(services, everything=everything).since(None)

    web = {Counted(WEB, "10.244.1.11:8080"): 4, Counted(WEB, "10.244.1.12:8080"): 3}
    assert namespace.call(lambda: read(WEB)) == web
    assert namespace.call(lambda: read("shop/")) == web | {Counted(DNS, "10.244.1.13:53"): 2}


def test_a_node_without_pyproxys_chains_is_a_usage_error(
    namespace: Namespace, flavour: Flavour
) -> None:
    with pytest.raises(UsageError, match="no frontend of pyproxy's"):
        namespace.call(IptablesCounters(flavour).require)
