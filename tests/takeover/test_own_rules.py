"""iptables rules that pyproxy's other modes have left, and those in service."""

from __future__ import annotations

import sys

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.model.flavour import Flavour
from pyproxy.takeover import kernel
from pyproxy.takeover.iptables import find_own_rules
from pyproxy.takeover.leftovers import InService, Leftovers

from .scenes import FLAVOURS, leave, make_foreign, state, without_firewall

pytestmark = pytest.mark.kernel

CLEANUP = (sys.executable, "-m", "pyproxy", "cleanup")
OURS = """
*mangle
:KUBE-PROXY-CANARY - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A PREROUTING -j KUBE-PROXY-FIREWALL
-A KUBE-PROXY-FIREWALL ! -i lo -d 127.0.0.0/8 -j DROP
COMMIT
*filter
:KUBE-SERVICES - [0:0]
:KUBE-REFUSE - [0:0]
:KUBE-NO-10.96.0.0/16 - [0:0]
-A OUTPUT -m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.0/16 -g KUBE-NO-10.96.0.0/16
-A KUBE-NO-10.96.0.0/16 -d 10.96.0.9/32 -j KUBE-REFUSE
:KUBE-FW-AAAAAAAAAAAAAAAA - [0:0]
-A KUBE-NO-10.96.0.0/16 -d 198.51.100.7/32 -g KUBE-FW-AAAAAAAAAAAAAAAA
-A KUBE-FW-AAAAAAAAAAAAAAAA -s 203.0.113.0/24 -g KUBE-REFUSE
-A KUBE-REFUSE -j REJECT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-MARK-OUTSIDE - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-IP-10.96.0.0/16 - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.0/16 -g KUBE-IP-10.96.0.0/16
-A KUBE-IP-10.96.0.0/16 -d 10.96.0.1/32 -p tcp -j KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-SVC-AAAAAAAAAAAAAAAA -j KUBE-MARK-OUTSIDE
-A KUBE-SVC-AAAAAAAAAAAAAAAA -j KUBE-SEP-AAAAAAAAAAAAAAAA
-A KUBE-SEP-AAAAAAAAAAAAAAAA -p tcp -j DNAT --to-destination 10.244.1.11:8080
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-MARK-OUTSIDE -j MARK --set-xmark 0x4000/0x4000
COMMIT
"""
"""Chains of pyproxy's iptables mode, with the jumps in built-in chains."""


@pytest.fixture(autouse=True)
def _others(here: Namespace) -> None:
    make_foreign(here)


def leave_ours(here: Namespace, flavour: str) -> None:
    here.run([f"iptables-{flavour}-restore", "--wait", "--noflush"], text=OURS)


def find_own(here: Namespace, stays: InService) -> Leftovers:
    return here.call(lambda: find_own_rules(stays))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_rules_in_service_stay_and_others_are_removed(here: Namespace, flavour: str) -> None:
    before = state(here)
    leave_ours(here, flavour)
    assert not find_own(here, InService(flavour=Flavour(flavour)))
    found = find_own(here, InService())
    assert str(found) == f"iptables-{flavour}: 3 jumps and 12 chains"
    assert not here.call(lambda: kernel.remove(found))
    assert state(here) == before
    assert not find_own(here, InService())


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_kube_proxys_rules_are_not_pyproxys(here: Namespace, flavour: str) -> None:
    leave(here, f"iptables-{flavour}")
    assert not find_own(here, InService())
    before = state(here)
    here.run(CLEANUP)
    assert state(here) == before


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_after_kube_proxy_comes_back_only_chains_that_it_does_not_have_are_removed(
    here: Namespace, flavour: str
) -> None:
    leave(here, f"iptables-{flavour}")
    before = state(here)
    # kube-proxy writes its chains whole, and so nothing of its own leads to ours any more.
    alone = "".join(
        f"{line}\n"
        for line in OURS.splitlines()
        if not line.startswith(("-A KUBE-S", ":KUBE-S", "-A KUBE-MARK-MASQ", ":KUBE-MARK-MASQ"))
        and "-A PREROUTING -m comment" not in line
        and "KUBE-SVC" not in line
    )
    here.run([f"iptables-{flavour}-restore", "--wait", "--noflush"], text=alone)
    assert state(here) != before
    here.run(CLEANUP)
    assert state(here) == before


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_takeover_leaves_the_rules_in_service(here: Namespace, flavour: str) -> None:
    other = next(each for each in FLAVOURS if each != flavour)
    empty = without_firewall(state(here))
    leave_ours(here, flavour)
    serving = without_firewall(state(here))
    leave(here, f"iptables-{other}")
    leave(here, "nftables")
    stays = InService(flavour=Flavour(flavour))
    assert not here.call(lambda: kernel.remove(kernel.find(stays)))
    program = f"iptables-{flavour}"
    assert without_firewall(state(here))[program] == serving[program]
    assert without_firewall(state(here))["tables"] == serving["tables"]
    assert not here.call(lambda: kernel.remove(kernel.find()))
    assert without_firewall(state(here))[program] == empty[program] or flavour == "legacy"


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_chains_of_kube_proxys_ipvs_mode_are_removed_from_rules_in_service(
    here: Namespace, flavour: str
) -> None:
    leave_ours(here, flavour)
    before = state(here)
    ipvs = """
*filter
:KUBE-IPVS-FILTER - [0:0]
:KUBE-NODE-PORT - [0:0]
-A INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
-A INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT
COMMIT
"""
    here.run([f"iptables-{flavour}-restore", "--wait", "--noflush"], text=ipvs)
    stays = InService(flavour=Flavour(flavour))
    found = here.call(lambda: kernel.find(stays))
    assert str(found) == f"iptables-{flavour}: 2 jumps and 2 chains"
    assert not here.call(lambda: kernel.remove(found))
    assert state(here) == before


def test_ipvs_mode_in_service_keeps_its_device(here: Namespace) -> None:
    """This kernel may lack dummy devices, so a bridge has the name instead."""
    here.ip(["link add kube-ipvs0 type bridge"])
    assert here.call(lambda: kernel.find(InService(ipvs=True))) == Leftovers()
    assert here.call(kernel.find).links == ("kube-ipvs0",)
