"""The agent's thread: it waits for events and for time, and does nothing else."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Generic

import msgspec

from pyproxy.agent import gc_tuning
from pyproxy.agent.core import Agent
from pyproxy.agent.queries import Query
from pyproxy.dataplane.interface import Drift, P
from pyproxy.health.state import Health
from pyproxy.model.events import Event

_BATCH = 10_000
"""Events taken in before a look at the clock, so that a flood of them cannot put off a sync."""


class Stop(msgspec.Struct, frozen=True):
    """The end, by a signal or by an error that nothing can be done about."""


Inbox = queue.SimpleQueue[Event | Drift | Query | Stop]


class Loop(Generic[P]):
    """Feeds one agent from one inbox until it holds a Stop.

    `chores` are called every `chore_period` seconds, for what has a pace of its own. `health` hears
    a beat at least as often, so that a thread that is stuck is noticed.
    """

    def __init__(
        self,
        agent: Agent[P],
        inbox: Inbox,
        chores: Callable[[], None],
        chore_period: float,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agent = agent
        self._inbox = inbox
        self._chores = chores
        self._chore_period = chore_period
        self._health = health
        self._clock = clock
        self._next_chores = clock() + chore_period
        self._settled = False

    def run(self) -> None:
        """Work until told to stop. Raises PermissionKernelError."""
        with gc_tuning.seldom():
            self._run()

    def _run(self) -> None:
        self._health.heartbeat()
        while self._take_in():
            self._health.heartbeat()
            if self._clock() >= self._next_chores:
                self._chores()
                self._next_chores = self._clock() + self._chore_period
            due = self._agent.due()
            if due is not None and due <= self._clock():
                self._sync()

    def _take_in(self) -> bool:
        for number in range(_BATCH):
            try:
                event = self._inbox.get(timeout=self._patience()) if number == 0 else None
                event = event or self._inbox.get_nowait()
            except queue.Empty:
                return True
            if isinstance(event, Stop):
                return False
            if isinstance(event, Drift):
                self._agent.drifted(event)
            elif isinstance(event, Query):
                event.routing()
            else:
                self._agent.handle_event(event)
        return True

    def _patience(self) -> float:
        due = self._agent.due()
        until = self._next_chores if due is None else min(due, self._next_chores)
        return max(0.0, until - self._clock())

    def _sync(self) -> None:
        if self._settled:
            self._agent.sync()
            return
        # Whatever the first sync makes is kept, so there is nothing to be found meanwhile.
        with gc_tuning.never():
            self._agent.sync()
        # What has been read by now lives on; walking it again and again would hold up changes.
        gc_tuning.settle()
        self._settled = True
