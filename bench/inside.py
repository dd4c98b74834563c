"""The agent's core, its loop and a dataplane in this process, with exact times.

All is the agent's own but the source: changes are read from the bytes of a watch event right here.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from pyproxy_lab.bench.figures import Spread
from pyproxy_lab.bench.shape import (
    NAMESPACE,
    NODE_NAME,
    POD_NETWORK,
    SLICE_LIMIT,
    Size,
    endpoint_slice,
    endpoint_slices,
    objects,
    service,
    service_name,
)
from pyproxy_lab.modes import NFTABLES, LabMode
from pyproxy_lab.namespace import LabError

from pyproxy.agent.backoff import SyncBackoff
from pyproxy.agent.cluster_state import ClusterState
from pyproxy.agent.commit import Commit, Observers
from pyproxy.agent.core import Agent
from pyproxy.agent.loop import Chores, Inbox, Loop, Stop, watch_drift
from pyproxy.agent.node import NodeRules
from pyproxy.agent.node_addresses import local_addresses
from pyproxy.config.settings import (
    FlowOffload,
    IptablesSettings,
    LocalTraffic,
    NftablesSettings,
    Settings,
)
from pyproxy.dataplane import modes
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables.readback import read_table
from pyproxy.health.state import Health
from pyproxy.metrics import Metrics
from pyproxy.model.address import parse_network
from pyproxy.model.events import Delete, Event, Synced, Upsert
from pyproxy.model.objects import EndpointSlice, Kind, Node, ObjectName, Service
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.source import stream
from pyproxy.source.decode import decode_object

PATIENCE = 60.0


class Bell:
    """A follower that notes when a commit is done."""

    def __init__(self) -> None:
        self.rang_at = 0.0
        self._rung = threading.Event()

    def committed(self, commit: Commit, cluster_state: ClusterState) -> None:  # noqa: ARG002
        """Note the time."""
        self.rang_at = time.perf_counter()
        self._rung.set()

    def wait(self) -> float:
        """Return the time of the next commit, or of the last one that no call waited for."""
        if not self._rung.wait(PATIENCE):
            raise LabError("a change has not been committed")
        self._rung.clear()
        return self.rang_at


class Inside:
    """One agent in this network namespace."""

    def __init__(
        self, mode: LabMode = NFTABLES, flow_offload: FlowOffload = FlowOffload.NONE
    ) -> None:
        settings = Settings(
            NODE_NAME,
            mode.proxy_mode,
            local_traffic=LocalTraffic(cluster_networks=(parse_network(POD_NETWORK),)),
            iptables=IptablesSettings(mode.flavour),
            nftables=NftablesSettings(flow_offload=flow_offload),
        )
        self.dataplane = modes.of(settings.mode).make(settings)
        self.dataplane.prepare()
        self.bell = Bell()
        self.inbox: Inbox = Inbox()
        observers = Observers(
            Metrics(), Health(30.0), [self.bell], time.monotonic, time.time, lambda _: None
        )
        self.agent: Agent[Any] = Agent(
            self.dataplane, NodeRules(settings, local_addresses), SyncBackoff(0.0), observers
        )

        watch_drift(self.dataplane, self.inbox.put)

    def handle_event(self, events: list[Event]) -> None:
        """Take in all lists, without the loop."""
        for event in events:
            self.agent.handle_event(event)

    @property
    def sent(self) -> tuple[int, int]:
        """How many messages and bytes have gone to the kernel."""
        return self.dataplane.messages_sent, self.dataplane.bytes_sent

    @contextmanager
    def looping(self, chores: Chores = Chores()) -> Iterator[None]:  # noqa: B008
        """Have the agent's own loop do the rest, from a sync that is due."""
        loop = Loop(self.agent, self.inbox, chores, Health(30.0))
        thread = threading.Thread(target=loop.run, name="loop")
        thread.start()
        try:
            self.bell.wait()
            yield
        finally:
            self.inbox.put(Stop())
            thread.join()

    def change(self, line: bytes) -> float:
        """Have one watch event's bytes reach the kernel; the seconds that it takes."""
        began = time.perf_counter()
        event = stream.event(memoryview(line))
        reading = decode_object(Kind.ENDPOINT_SLICE, event.object)
        assert isinstance(reading.value, EndpointSlice)
        self.inbox.put(Upsert(reading.value, began))
        return self.bell.wait() - began

    def close(self) -> None:
        """Remove the rules, so that the next measurement starts without them."""
        self.dataplane.cleanup()
        self.dataplane.close()


@contextmanager
def inside(
    mode: LabMode = NFTABLES, flow_offload: FlowOffload = FlowOffload.NONE
) -> Iterator[Inside]:
    """Have an agent, and no rules left of it afterwards."""
    agent = Inside(mode, flow_offload)
    try:
        yield agent
    finally:
        agent.close()
        gc.unfreeze()


def first_syncs(size: Size, runs: int, mode: LabMode) -> tuple[Spread, Spread]:
    """Measure first syncs, from lists read to kernel programmed, and restarts on the result."""
    first, again = [], []
    for _ in range(runs):
        with inside(mode) as agent:
            first.append(_timed_sync(agent, size))
            successor = Inside(mode)
            before = successor.sent[0]
            again.append(_timed_sync(successor, size))
            if written := successor.sent[0] - before:
                raise LabError(f"a restart has written {written} messages")
            successor.dataplane.close()
    return Spread(first), Spread(again)


def _timed_sync(agent: Inside, size: Size) -> float:
    agent.handle_event(lists(size))
    began = time.perf_counter()
    # In the agent's own loop, which knows when garbage is to be collected.
    with agent.looping():
        return agent.bell.rang_at - began


def lists(size: Size) -> list[Event]:
    """Return the events of all lists, as a source sends them."""
    return lists_of(objects(size))


def lists_of(found: Iterable[dict[str, Any]]) -> list[Event]:
    """Return the events of lists of these objects and of no others."""
    events: list[Event] = []
    names: dict[Kind, set[ObjectName]] = {kind: set() for kind in Kind}
    for obj in found:
        kind = Kind(obj["kind"])
        reading = decode_object(kind, msgspec.json.encode(obj))
        assert reading.name is not None
        names[kind].add(reading.name)
        events.append(_upsert(kind, obj))
    return [*events, *(Synced(kind, frozenset(of)) for kind, of in names.items())]


def changed_slice(number: int, size: Size) -> Event:
    """By turns take an endpoint from a Service, and give it back."""
    return _upsert(Kind.ENDPOINT_SLICE, slice_object(number, size))


def made(number: int, endpoints: int) -> list[Event]:
    """Return a Service that was not there before, with its slices."""
    return [
        _upsert(Kind.SERVICE, service(number)),
        *(_upsert(Kind.ENDPOINT_SLICE, each) for each in endpoint_slices(number, endpoints)),
    ]


def deleted(number: int) -> list[Event]:
    """Take a Service away, with its first slice."""
    name = service_name(number)
    return [
        Delete(Kind.SERVICE, ObjectName(NAMESPACE, name)),
        Delete(Kind.ENDPOINT_SLICE, ObjectName(NAMESPACE, f"{name}-0")),
    ]


def held() -> Table:
    """Read what the kernel holds of ours."""
    netlink = Nfnetlink()
    try:
        return read_table(netlink)
    finally:
        netlink.close()


def _upsert(kind: Kind, obj: dict[str, Any]) -> Event:
    reading = decode_object(kind, msgspec.json.encode(obj))
    assert isinstance(reading.value, Service | EndpointSlice | Node)
    return Upsert(reading.value)


def slice_object(number: int, size: Size) -> dict[str, Any]:
    """Return the slice of `changed_slice` as JSON has it."""
    of = number // 2 % size.services
    pods = range(of * size.endpoints, (of + 1) * size.endpoints)
    pods = pods[:-1] if number % 2 == 0 else pods
    return endpoint_slice(of, pods[:SLICE_LIMIT], version=number + 2)
