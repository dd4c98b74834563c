"""The agent's thread, which waits for events and time, and the thread that watches for drift."""

from __future__ import annotations

import logging
import queue
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol

import msgspec

from pyproxy.agent import gc_tuning
from pyproxy.agent.backoff import WorkLimiter
from pyproxy.agent.core import Agent
from pyproxy.agent.queries import Query
from pyproxy.agent.timeline import Activity
from pyproxy.dataplane.interface import Drift, P
from pyproxy.errors import KernelError
from pyproxy.health.state import Health
from pyproxy.model.events import Event, Upsert
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

_BATCH = 10_000
"""Events between two readings of the clock, so that many of them cannot delay a sync."""

_RETRY_SECONDS = 1.0

_DEVICES_SECONDS = 0.5
"""Time after a change of devices in which others are awaited: a node starts a hundred pods."""

SWITCH_INTERVAL = 0.0005
"""Seconds until a thread that waits to run Python code interrupts the one that runs.

A change waits for its turn after each call that blocks, a dozen times, while other threads decode
objects or render pages. The default of 5 ms would make that tens of milliseconds. The first sync is
made with the default: less was measured to lengthen it.
"""


class Stop(msgspec.Struct, frozen=True):
    """A request to end the loop, after a signal or a change of the configuration."""


class AddressesChanged(msgspec.Struct, frozen=True):
    """The node may have got or lost addresses."""


class DevicesChanged(msgspec.Struct, frozen=True):
    """Network devices came or went that the dataplane uses by name."""


class Chores(msgspec.Struct, frozen=True):
    """Work beside events and syncs, in the agent's thread.

    `periodic` is called every `period` seconds. `spare` does a bounded part of work that events and
    syncs need not wait for, and returns whether more is left.
    """

    periodic: Callable[[], None] = lambda: None
    period: float = 2.0
    spare: Callable[[], bool] = lambda: False


# SimpleQueue, the fastest that Python has, because all objects of all lists pass it.
Inbox = queue.SimpleQueue[Event | Drift | Query | AddressesChanged | DevicesChanged | Stop]


class Loop(Generic[P]):
    """Feeds one agent from one inbox until it holds a Stop.

    `health` gets a heartbeat at least as often as the periodic chores run, which shows that this
    thread is not stuck.
    """

    def __init__(
        self,
        agent: Agent[P],
        inbox: Inbox,
        chores: Chores,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agent = agent
        self._activities = agent.timeline.activities
        self._inbox = inbox
        self._chores = chores
        self._health = health
        self._clock = clock
        self._has_more = False
        self._next_periodic = clock() + chores.period
        self._has_synced = False
        self._has_new_addresses = False
        self._address_reads = WorkLimiter()
        self._addresses_due = 0.0
        self._devices_due: float | None = None

    def run(self) -> None:
        """Block until the inbox holds a Stop. Raises PermissionKernelError."""
        timeline = self._agent.timeline
        with (
            gc_tuning.rare(),
            gc_tuning.observed(timeline.activities.collection),
            _restored_switch_interval(),
            timeline.reading_thread_times(),
        ):
            self._run()

    def _run(self) -> None:
        self._health.heartbeat()
        while self._handle_events():
            self._health.heartbeat()
            if self._clock() >= self._next_periodic:
                with self._activities.during(Activity.PERIODIC):
                    self._chores.periodic()
                self._next_periodic = self._clock() + self._chores.period
            if self._has_new_addresses and self._read_due <= self._clock():
                with self._activities.during(Activity.ADDRESSES):
                    self._read_addresses()
            if self._devices_due is not None and self._devices_due <= self._clock():
                self._devices_due = None
                with self._activities.during(Activity.ADDRESSES):
                    self._agent.devices_changed()
            due = self._agent.due()
            if due is not None and due <= self._clock():
                self._sync()
            with self._activities.during(Activity.SPARE):
                self._has_more = self._chores.spare()

    def _handle_events(self) -> bool:
        """Wait for an event, or for time; return False at a Stop."""
        for number in range(_BATCH):
            try:
                # Only the first read waits; the others take what has arrived meanwhile, so that
                # one sync writes a burst of events.
                event = self._inbox.get(timeout=self._timeout()) if number == 0 else None
                event = event or self._inbox.get_nowait()
            except queue.Empty:
                return True
            if isinstance(event, Upsert):  # first, because a list has tens of thousands
                self._agent.handle_event(event)
            elif isinstance(event, Stop):
                return False
            elif isinstance(event, Drift):
                self._agent.drifted(event)
            elif isinstance(event, Query):
                with self._activities.during(Activity.QUERY):
                    event.run()
            elif isinstance(event, AddressesChanged):
                # Read once for all that changed together.
                self._has_new_addresses = True
            elif isinstance(event, DevicesChanged):
                # The first change of several sets the time, so that a stream of them delays none.
                if self._devices_due is None:
                    self._devices_due = self._clock() + _DEVICES_SECONDS
            else:
                self._agent.handle_event(event)
        return True

    def _timeout(self) -> float:
        if self._has_more:
            return 0.0
        until = self._next_periodic
        if (due := self._agent.due()) is not None:
            until = min(until, due)
        if self._has_new_addresses:
            until = min(until, self._read_due)
        if self._devices_due is not None:
            until = min(until, self._devices_due)
        return max(0.0, until - self._clock())

    @property
    def _read_due(self) -> float:
        return max(self._addresses_due, self._address_reads.due)

    def _read_addresses(self) -> None:
        began = self._clock()
        # First, because ipvs mode compares its own device with the node's addresses there.
        self._agent.tick()
        self._has_new_addresses = not self._agent.addresses_changed()
        ended = self._clock()
        # An interface that flaps for hours must not use up a processor.
        self._address_reads.worked(began, ended)
        self._addresses_due = ended + _RETRY_SECONDS if self._has_new_addresses else 0.0

    def _sync(self) -> None:
        if self._has_synced:
            self._agent.sync()
            return
        # The first sync keeps all that it makes, so a collection would find no garbage.
        with gc_tuning.disabled():
            self._agent.sync()
            # All objects so far stay, and walking them at each collection would delay changes.
            gc_tuning.freeze()
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._has_synced = True


@contextmanager
def _restored_switch_interval() -> Iterator[None]:
    interval = sys.getswitchinterval()
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


class DriftWatcher(Protocol):
    """The part of a dataplane that `watch_drift` uses."""

    def wait_for_drift(self) -> Drift | None:
        """Block until another program has changed our objects; None after `close`."""
        ...


def watch_drift(dataplane: DriftWatcher, emit: Callable[[Drift], None]) -> None:
    """Start a thread that emits each drift, until the dataplane is closed. Does not block."""
    Worker("drift", lambda: _watch_drift(dataplane, emit)).start()


def _watch_drift(dataplane: DriftWatcher, emit: Callable[[Drift], None]) -> None:
    while True:
        try:
            drift = dataplane.wait_for_drift()
        except KernelError as error:
            log.warning("cannot read notifications of kernel changes, retrying: %s", error)
            time.sleep(_RETRY_SECONDS)
            # Notifications may be lost, so the agent reads the kernel back.
            drift = Drift("")
        except Exception:
            # A bug, after which this is called again. The notifications that it has read are lost.
            emit(Drift(""))
            raise
        if drift is None:
            return
        emit(drift)


class DeviceWatcher(Protocol):
    """The part of a dataplane that `watch_devices` uses."""

    def wait_for_devices(self) -> bool:
        """Block until devices change; False after `close`, or if the mode uses none."""
        ...


def watch_devices(dataplane: DeviceWatcher, emit: Callable[[DevicesChanged], None]) -> None:
    """Start a thread that emits changes of devices, until the dataplane is closed."""
    Worker("devices", lambda: _watch_devices(dataplane, emit)).start()


def _watch_devices(dataplane: DeviceWatcher, emit: Callable[[DevicesChanged], None]) -> None:
    while True:
        try:
            if not dataplane.wait_for_devices():
                return
        except KernelError as error:
            log.warning("cannot read notifications of network devices, retrying: %s", error)
            time.sleep(_RETRY_SECONDS)
        except Exception:
            emit(DevicesChanged())
            raise
        emit(DevicesChanged())
