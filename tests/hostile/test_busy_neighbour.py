"""Other Services' changes while a giant Service is written, on a real kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.nft.readback import read_element
from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.model.address import Family, Port, Protocol
from pyproxy.model.events import Delete, Upsert
from pyproxy.model.objects import (
    Endpoint,
    EndpointSlice,
    Kind,
    ObjectName,
    Service,
    ServicePort,
    SlicePort,
)
from pyproxy.netlink.nfnetlink import Nfnetlink
from tests.agent.objects import Clock
from tests.builders import endpoint_slice, ip, service
from tests.chaos.kernel_agent import SteppedAgent
from tests.namespaces import empty_namespace

pytestmark = pytest.mark.kernel

GIANT = ObjectName("tenant", "giant")
PORTS, ADDRESSES, ENDPOINTS = 60, 40, 4
ROWS = PORTS * (ADDRESSES + 1) * (ENDPOINTS + 1)
STEP_BYTES = 700_000
"""Bytes of a step of about 2,500 rows, removed and added, with what it goes beyond that."""


def giant(affinity: int = 0) -> Service:
    return Service(
        GIANT,
        tuple(ServicePort(f"p{n}", Protocol.TCP, Port(1000 + n)) for n in range(PORTS)),
        (ip("10.96.9.9"),),
        tuple(ip(f"192.0.2.{n + 1}") for n in range(ADDRESSES)),
        affinity_timeout=affinity,
        families=(Family.IPV4,),
    )


def endpoints(first: int) -> EndpointSlice:
    return EndpointSlice(
        ObjectName("tenant", "giant-0"),
        GIANT,
        Family.IPV4,
        tuple(SlicePort(f"p{n}", Protocol.TCP, Port(8080)) for n in range(PORTS)),
        tuple(Endpoint(ip(f"10.244.2.{first + n}")) for n in range(ENDPOINTS)),
    )


@pytest.fixture
def agents() -> Iterator[tuple[SteppedAgent, SteppedAgent]]:
    """Provide two agents, in a namespace each."""
    clock = Clock()
    with ExitStack() as stack:
        made = []
        for _ in range(2):
            namespace: Namespace = stack.enter_context(empty_namespace("busy"))
            made.append(SteppedAgent(namespace, clock))
            stack.callback(made[-1].close)
        yield made[0], made[1]


def step(agent: SteppedAgent) -> bool:
    """Make a step, if one is due."""
    if agent.agent.due() is None:
        return False
    agent.namespace.call(agent.agent.sync)
    return True


def served(netlink: Nfnetlink) -> object:
    """Return the first endpoint of the small Service, without a dump of the giant's rows."""
    key = frontend_key(ip("10.96.0.1"), Protocol.TCP, 80) + bytes(4)
    return read_element(netlink, TABLE, "endpoints4", key)


def test_a_giant_delays_a_small_change_by_two_steps(
    agents: tuple[SteppedAgent, SteppedAgent],
) -> None:
    busy, fresh = agents
    netlink = busy.namespace.call(Nfnetlink)
    web = service("web", 1)
    busy.start(web, endpoint_slice("web", ["10.244.1.1"]))
    changes: list[list[Upsert | Delete]] = [
        [Upsert(giant()), Upsert(endpoints(1))],
        [Upsert(endpoints(3))],
        [Upsert(giant(affinity=60))],
        [Delete(Kind.SERVICE, GIANT)],
        [Upsert(giant())],
    ]
    number = steps = 0
    for change in changes:
        for event in change:
            busy.agent.handle_event(event)
        step(busy)
        while busy.agent.pending_count():
            number += 1
            before = busy.dataplane.bytes_sent
            busy.agent.handle_event(Upsert(endpoint_slice("web", [f"10.244.1.{1 + number % 200}"])))
            held = served(netlink)
            for _ in range(2):
                step(busy)
                if served(netlink) != held:
                    break
            else:
                raise AssertionError("the small change waits for more than two steps")
            assert busy.dataplane.bytes_sent - before < 2 * STEP_BYTES
            step(busy)
            steps += 1
    # The giant was written in steps, and not at once behind one of the small changes.
    assert steps > 4 * ROWS / 2_500
    while step(busy):
        pass
    last = endpoint_slice("web", [f"10.244.1.{1 + number % 200}"])
    assert busy.snapshot().rows == fresh.start(web, last, giant(), endpoints(3)).rows
    netlink.close()
