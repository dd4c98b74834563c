"""An older version's table is taken over under load, and no connection fails.

`data/table-8f9cf21` is what version 8f9cf21 wrote for the Services below: the base rules as it gave
them to nft, and every netlink message. Several of its sets and chains have other names today.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.network import Network
from pyproxy_lab.probe import Outcome, probe

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nft.base_rules import BaseRules
from pyproxy.dataplane.nft.loader import begin_load, finish_load, load_rules, read_layout
from pyproxy.dataplane.nftables import table_writer
from pyproxy.dataplane.nftables.base_rules import NftablesOptions, base_rules
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.model.destination import parse_destination
from pyproxy.netlink.nfnetlink import Message, Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM
from tests.chaos.load import LoadResult, load
from tests.dataplane.nftables.test_tracer_on_kernel import CASES, NODE_PORT_ADDRESSES, POD_NETWORKS
from tests.waiting import RESPONSE_TIMEOUT

pytestmark = pytest.mark.packets

DATA = Path(__file__).with_name("data")
ROUTINGS = [case.routing() for case in CASES if case.number in (1, 2, 6, 8, 12, 13)]
NODE = NodeRouting(POD_NETWORKS, NODE_PORT_ADDRESSES)
OLD_NAMES = ("insiders", "outsiders", "refused", "guarded", "sticky")
STEPS = ("begin_load", "load_rules", "finish_load")
"""Functions of the loader that write, in order; elements are written after the first two."""

PAUSE = 0.3
Result = TypeVar("Result")
RATE = 150
"""New connections a second from each client."""

LOADS = {
    # Cluster IPs of all kinds, and external addresses whose policy is Local.
    "a2": ("10.96.0.1:80", "10.96.0.6:80", "192.0.2.6:80", "10.96.0.12:80", "[fd00:10:96::13]:80"),
    # Node ports and load balancer addresses: masqueraded, local, and with source ranges.
    "ext": (
        "172.30.0.11:30001",
        "192.0.2.6:80",
        "192.0.2.8:80",
        "[fd30::11]:30006",
        "192.0.2.13:80",
    ),
    "na": ("10.96.0.1:80", "192.0.2.6:80", "10.96.0.13:80"),
}
EMPTY = parse_destination("10.96.0.2:80")
AFFINE = tuple(map(parse_destination, ("10.96.0.12:80", "[fd00:10:96::12]:80", "192.0.2.13:80")))


def load_old_table(node: Namespace) -> None:
    node.run(["nft", "-f", str(DATA / "table-8f9cf21.nft")])
    messages = []
    for line in (DATA / "table-8f9cf21.messages").read_text().splitlines():
        if not line.startswith("#"):
            kind, flags, body, _ = line.split(" ", 3)
            messages.append(Message(int(kind, 16), int(flags, 16), bytes.fromhex(body)))
    netlink = node.call(Nfnetlink)
    try:
        assert not netlink.transact(messages, SUBSYSTEM)
    finally:
        netlink.close()


@contextmanager
def always_rejected(client: Namespace) -> Iterator[list[Outcome]]:
    """Probe a Service without endpoints until the block ends; yield what was not a rejection."""
    wrong: list[Outcome] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.002):
            outcome = probe(EMPTY, timeout=2.0)
            if outcome.refused != 1:
                wrong.append(outcome)

    thread = threading.Thread(target=client.call, args=(ask,))
    thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        thread.join()


def established(network: Network, stack: ExitStack) -> list[tuple[socket.socket, bytes]]:
    """Open a connection from each client to each of its targets; each with its pod's response."""
    found = []
    for name, targets in LOADS.items():
        for target in targets:
            address = parse_destination(target).socket_address
            connect = partial(socket.create_connection, address, RESPONSE_TIMEOUT)
            connection = stack.enter_context(network.namespace(name).call(connect))
            found.append((connection, connection.recv(256)))
    return found


def upgrade(network: Network) -> None:
    """Start this version's dataplane over the old table, as an agent does; and look at the end."""
    node = network.namespace("na")
    dataplane = node.call(lambda: NftablesDataplane(NftablesOptions()))
    netlink = node.call(Nfnetlink)
    try:
        node.call(dataplane.prepare)
        plan = dataplane.plan_full(ROUTINGS, NODE)
        assert plan.reload
        assert node.call(lambda: dataplane.commit(plan)) == ()
        base = base_rules(plan.options)
        layout = read_layout(netlink, TABLE)
        assert base.is_loaded(layout)
        assert not base.strays(layout)
        names = [*layout.chains, *layout.sets]
        assert not [name for name in names if name.startswith(OLD_NAMES) or "sticky" in name]
        sent = dataplane.messages_sent
        again = dataplane.plan_full(ROUTINGS, NODE)
        assert not again, str(again)
        assert node.call(lambda: dataplane.commit(again)) == ()
        assert dataplane.messages_sent == sent
    finally:
        netlink.close()
        dataplane.close()


def test_no_connection_fails_while_an_older_table_is_taken_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The states between the transactions last long enough for connections to meet each of them.
    for step in STEPS:
        monkeypatch.setattr(table_writer, step, slow(getattr(table_writer, step)))
    with Network() as network, ExitStack() as stack:
        load_old_table(network.namespace("na"))
        connections = established(network, stack)
        client = network.namespace("a1")
        ask = [partial(probe, target, tries=4, timeout=RESPONSE_TIMEOUT) for target in AFFINE]
        before = [client.call(each) for each in ask]
        assert all(len(each.reached) == 1 for each in before)
        results: list[LoadResult] = []
        with ExitStack() as loads:
            wrong = loads.enter_context(always_rejected(network.namespace("a1")))
            for name, targets in LOADS.items():
                results.append(loads.enter_context(load(network.namespace(name), RATE, targets)))
            upgrade(network)
        assert not wrong
        for result in results:
            assert not result.failed
            assert not result.retransmitted
            assert result.answered
        for connection, response in connections:
            connection.sendall(b"?")
            assert connection.recv(256) == response
        # Clients keep the endpoints that the old table taught the kernel.
        after = [client.call(each) for each in ask]
        assert [each.reached for each in after] == [each.reached for each in before]


@pytest.mark.parametrize("step", STEPS[1:])
def test_an_interrupted_upgrade_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with Network() as network:
        node, client = network.namespace("na"), network.namespace("a2")
        load_old_table(node)
        with monkeypatch.context() as patched, load(client, RATE, LOADS["a2"]) as before:
            # As by SIGKILL: the new sets are filled, and the older or the new rules serve.
            patched.setattr(table_writer, step, interrupted)
            with pytest.raises(InterruptedError):
                upgrade(network)
        with load(client, RATE, LOADS["a2"]) as after:
            upgrade(network)
    for result in (before, after):
        assert not result.failed
        assert not result.retransmitted


def test_older_rules_serve_until_elements_are_written_in_each_attempt(namespace: Namespace) -> None:
    base = base_rules(NftablesOptions())
    older = without_node_ports(base)
    netlink = namespace.call(Nfnetlink)

    def served() -> bool:
        listing = namespace.run(["nft", "list", "chain", "inet", TABLE, "services"])
        return "@node-ports4" in listing.stdout

    def write(step: Callable[..., None], rules: BaseRules) -> None:
        namespace.call(partial(step, netlink, rules))

    with closing(netlink):
        write(begin_load, older)
        write(finish_load, older)
        for _ in range(2):
            # The first attempt ends here; its sets exist, and are empty.
            write(begin_load, base)
            assert not served()
        write(load_rules, base)
        assert served()
        write(finish_load, base)
        assert base.is_loaded(read_layout(netlink, TABLE))


def without_node_ports(base: BaseRules) -> BaseRules:
    """Return base rules like those of a version without sets for node ports."""
    return msgspec.structs.replace(
        base,
        kinds={name: kind for name, kind in base.kinds.items() if "node-port" not in name},
        chains={
            name: [rule for rule in rules if "node-port" not in rule]
            for name, rules in base.chains.items()
            if "node" not in name
        },
    )


def slow(step: Callable[..., Result]) -> Callable[..., Result]:
    """Return a step with a pause before it and after it."""

    def run(*arguments: object) -> Result:
        time.sleep(PAUSE)
        found = step(*arguments)
        time.sleep(PAUSE)
        return found

    return run


def interrupted(*_: object) -> None:
    raise InterruptedError
