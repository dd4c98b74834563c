"""An agent's view for one asker, which lets others compute while a call blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

from pyproxy.dataplane.interface import FlowOffloadState, TableUsage
from pyproxy.inspect.snapshot import AgentView, Change, Snapshot
from pyproxy.inspect.turns import Turn
from pyproxy.model.objects import ObjectName
from pyproxy.source.api_objects import ServiceLookup


class TurnTaking:
    """An AgentView whose blocking methods pause the caller's turn. For one thread, in its turn."""

    def __init__(self, agent: AgentView, turn: Turn) -> None:
        self._agent = agent
        self._turn = turn

    def snapshot(self) -> Snapshot:
        """Return a snapshot. Raises BusyError."""
        with self._turn.paused():
            return self._agent.snapshot()

    def table_usage(self) -> tuple[TableUsage, ...]:
        """Return the number of objects in the kernel's tables; empty if it is unknown."""
        with self._turn.paused():
            return self._agent.table_usage()

    def flow_offload(self) -> FlowOffloadState | None:
        """Return the state of the fast path; None if there is none, or it is unknown."""
        with self._turn.paused():
            return self._agent.flow_offload()

    def look_up(self, name: ObjectName) -> ServiceLookup:
        """Ask the API server for a Service and its pods."""
        with self._turn.paused():
            return self._agent.look_up(name)

    def watch(self) -> AbstractContextManager[Iterator[Sequence[Change]]]:
        """Return the changes from now on. The iterator keeps the turn while it blocks."""
        return self._agent.watch()
