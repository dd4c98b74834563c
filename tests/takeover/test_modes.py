"""Takeover in iptables mode, and a change of pyproxy's mode, without a failed connection."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from pyproxy_lab.modes import IPTABLES_LEGACY, IPTABLES_NFT, NFTABLES, LabMode
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.network import Network

from pyproxy.model.flavour import Flavour
from tests.semantics.proxied import Proxied, proxied

from .scenes import FLAVOURS, leave, make_foreign, state, without_firewall
from .test_packets import OBJECTS, TAKEOVER, assert_alive, assert_all_answered, hold, loaded

pytestmark = pytest.mark.packets

PYPROXYS_ONLY = "KUBE-MARK-OUTSIDE"
KUBE_PROXYS_ONLY = "KUBE-NODEPORTS"
CLEANUP = [sys.executable, "-m", "pyproxy", "cleanup"]
FLAGS = [flag for flag in TAKEOVER if flag != "--takeover"]


def serves(agent: Proxied) -> None:
    agent.reaches("a2", "10.96.77.2:53/udp", "a1", "b1", "b2")
    agent.is_refused("a2", "10.96.77.3:80")
    agent.is_dropped("ext", "198.51.100.77:80")


def flavours_with(here: Namespace, chain: str) -> set[Flavour]:
    """Return the flavours of iptables that have a chain."""
    found = state(here)
    return {
        Flavour(flavour)
        for flavour in FLAVOURS
        if any(line.startswith(f":{chain} ") for line in found[f"iptables-{flavour}"])
    }


@pytest.mark.parametrize(
    ("left", "mode"),
    [
        ("iptables-legacy", IPTABLES_LEGACY),
        ("iptables-nft", IPTABLES_NFT),
        ("iptables-legacy", IPTABLES_NFT),
        ("nftables", IPTABLES_LEGACY),
    ],
)
def test_no_connection_fails_while_pyproxy_takes_over_in_iptables_mode(
    network: Network, tmp_path: Path, left: str, mode: LabMode
) -> None:
    here = network.namespace("na")
    make_foreign(here)
    before = without_firewall(state(here))
    leave(here, left)
    with ExitStack() as stack:
        held = hold(network, stack)
        with loaded(network) as came:
            run = proxied(mode, network, tmp_path / "x", *TAKEOVER, objects=OBJECTS)
            agent = stack.enter_context(run)
            adopted = left == mode.name
            agent.logs(f"{'no' if adopted else 'removed'} leftovers of kube-proxy")
            serves(agent)
            assert_alive(held)
        assert_all_answered(came)
        assert flavours_with(here, KUBE_PROXYS_ONLY) == set()
        assert flavours_with(here, PYPROXYS_ONLY) == {mode.flavour}
        for what in ("tables", "foreign", "not kube-proxy's", "sets", "links"):
            theirs = [line for line in before[what] if "table ip" not in line]
            assert [line for line in state(here)[what] if "table ip" not in line] == theirs
        agent.agent.stop()
        here.run(CLEANUP)
        after = without_firewall(state(here))
        for flavour in FLAVOURS:
            assert after[f"iptables-{flavour}"] == before[f"iptables-{flavour}"]


def test_no_connection_fails_while_the_mode_changes(network: Network, tmp_path: Path) -> None:
    here = network.namespace("na")
    make_foreign(here)
    before = state(here)
    with ExitStack() as stack:
        first = proxied(NFTABLES, network, tmp_path / "0", *FLAGS, objects=OBJECTS)
        agent = stack.enter_context(first)
        held = hold(network, stack)
        turns = (IPTABLES_LEGACY, IPTABLES_NFT, NFTABLES)
        for number, mode in enumerate(turns, 1):
            with loaded(network) as came:
                agent.agent.stop()
                folder = tmp_path / str(number)
                run = proxied(mode, network, folder, *FLAGS, objects=OBJECTS)
                agent = stack.enter_context(run)
                agent.logs("removed leftovers of another mode", patience=30)
                serves(agent)
                assert_alive(held)
            assert_all_answered(came)
            assert flavours_with(here, PYPROXYS_ONLY) == {mode.flavour} - {None}
            tables = here.run(["nft", "list", "tables"]).stdout.splitlines()
            assert ("table inet pyproxy" in tables) == (mode is NFTABLES)
        after = state(here)
        assert {what: after[what] for what in ("iptables-legacy", "ip6tables-legacy")} == {
            what: before[what] for what in ("iptables-legacy", "ip6tables-legacy")
        }


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_no_connection_fails_while_kube_proxy_comes_back_in_iptables_mode(
    network: Network, tmp_path: Path, flavour: str
) -> None:
    """kube-proxy writes the chains that it knows, and leaves the others."""
    here = network.namespace("na")
    make_foreign(here)
    mode = {"legacy": IPTABLES_LEGACY, "nft": IPTABLES_NFT}[flavour]
    with (
        proxied(mode, network, tmp_path / "x", *FLAGS, objects=OBJECTS) as agent,
        ExitStack() as stack,
    ):
        serves(agent)
        held = hold(network, stack)
        with loaded(network) as came:
            agent.agent.stop()
            leave(here, f"iptables-{flavour}")
            here.run(CLEANUP)
            assert_alive(held)
            assert flavours_with(here, PYPROXYS_ONLY) == set()
            assert flavours_with(here, KUBE_PROXYS_ONLY) == {Flavour(flavour)}
        assert_all_answered(came)
        assert_alive(held)
