"""An older version's rules are taken over under load, and no connection fails.

`data/rules-bbb8bd8.*` are what version bbb8bd8 wrote for the Services below. It had a frontend for
each address of a node port, in the tree of all frontends.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.network import Network
from pyproxy_lab.probe import probe

from pyproxy.model.address import Family
from pyproxy.model.flavour import Flavour
from pyproxy.xtables.programs import Programs
from tests.chaos.load import LoadResult, load
from tests.dataplane.iptables.programming import desired, held, program, programming
from tests.dataplane.nftables.test_upgrade import (
    AFFINE,
    LOADS,
    NODE,
    RATE,
    ROUTINGS,
    always_rejected,
    established,
    slow,
)
from tests.waiting import RESPONSE_TIMEOUT

pytestmark = pytest.mark.packets

DATA = Path(__file__).with_name("data")
PROGRAMS = ("iptables", "ip6tables")


def load_old_rules(node: Namespace, flavour: Flavour) -> None:
    for each in PROGRAMS:
        text = (DATA / f"rules-bbb8bd8.{each}").read_text()
        node.run([f"{each}-{flavour.value}-restore", "-w", "60"], text=text)


def test_no_connection_fails_while_older_rules_are_taken_over(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The states between two writes last long enough for connections to meet each of them.
    monkeypatch.setattr(Programs, "restore", slow(Programs.restore))
    with Network() as network, ExitStack() as stack:
        node, client = network.namespace("na"), network.namespace("a1")
        load_old_rules(node, flavour)
        connections = established(network, stack)
        ask = [partial(probe, target, tries=4, timeout=RESPONSE_TIMEOUT) for target in AFFINE]
        before = [client.call(each) for each in ask]
        assert all(len(each.reached) == 1 for each in before)
        results: list[LoadResult] = []
        with ExitStack() as loads, programming(node, flavour) as dataplane:
            wrong = loads.enter_context(always_rejected(client))
            for name, targets in LOADS.items():
                results.append(loads.enter_context(load(network.namespace(name), RATE, targets)))
            assert program(node, dataplane, ROUTINGS, NODE)
            plan = program(node, dataplane, ROUTINGS, NODE)
            assert not plan, str(plan)
        assert not wrong
        for result in results:
            assert not result.failed
            assert not result.retransmitted
            assert result.answered
        for connection, response in connections:
            connection.sendall(b"?")
            assert connection.recv(256) == response
        # Clients keep the endpoints that the old rules noted.
        after = [client.call(each) for each in ask]
        assert [each.reached for each in after] == [each.reached for each in before]
        for family in Family:
            assert held(node, flavour, family) == desired(ROUTINGS, NODE, family)
