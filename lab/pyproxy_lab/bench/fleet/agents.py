"""The API side of many agents: real sources and Event recorders in threads, and no kernel."""

from __future__ import annotations

import threading
from pathlib import Path

from prometheus_client import CollectorRegistry

from pyproxy.metrics.api import ApiMetrics
from pyproxy.model.address import address_text
from pyproxy.model.events import Event, Synced, Upsert
from pyproxy.model.objects import EndpointSlice, Kind
from pyproxy.source.connect import connect
from pyproxy.source.event_recorder import EventRecorder
from pyproxy.source.kubernetes import SILENCE, KubernetesSource
from pyproxy_lab.bench.fleet.clock import FastClock
from pyproxy_lab.bench.fleet.server import node_name

_SHORTEST_SILENCE = 10.0
"""Real seconds, because the delays of this machine are no shorter in a fast hour."""


class FleetAgent:
    """The API side of one agent, which notes the lists and the last slices, and drops the rest."""

    def __init__(self, kubeconfig: Path, number: int, speed: float, accept: str) -> None:
        client = connect(str(kubeconfig), "")
        clock = FastClock(speed)
        metrics = ApiMetrics(CollectorRegistry())
        self._name = node_name(number)
        self._changed = threading.Condition()
        self._synced: set[Kind] = set()
        self.lists = 0
        """How many lists are complete."""
        self._first_endpoints: dict[str, str] = {}
        self._recorder = EventRecorder(client, self._name, metrics, clock=clock)
        silence = max(SILENCE / speed, _SHORTEST_SILENCE)
        self._source = KubernetesSource(
            client, self._name, self._note, silence=silence, clock=clock, accept=accept
        )

    def start(self) -> None:
        """Start as an agent does: three kinds and the Event about the start."""
        self._source.start()
        self._recorder.start()
        self._recorder.record_start()

    def stop(self) -> None:
        """End all threads."""
        self._recorder.stop()
        self._source.stop()

    def await_slice(self, name: str, address: str, patience: float) -> bool:
        """Wait for a slice with this address first; return False after `patience` seconds."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._first_endpoints.get(name) == address, patience
            )

    def _note(self, event: Event) -> None:
        with self._changed:
            if isinstance(event, Synced):
                self._synced.add(event.kind)
                self.lists += 1
            # Those of the first list are too many to keep.
            elif Kind.ENDPOINT_SLICE in self._synced and isinstance(event, Upsert):
                if not isinstance(event.obj, EndpointSlice) or not event.obj.endpoints:
                    return
                address = address_text(event.obj.endpoints[0].address)
                self._first_endpoints[event.obj.name.name] = address
            else:
                return
            self._changed.notify_all()
