"""The declaration of the proxy mode toy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyproxy.config.modes import ProxyMode
from pyproxy.config.settings import Settings
from pyproxy.dataplane.connections import ConnectionCounters
from pyproxy.dataplane.interface import Dataplane
from pyproxy.dataplane.mode import LocalAddresses, Mode
from pyproxy.dataplane.packets import PacketTracer
from pyproxy.errors import UsageError

from .dataplane import ToyDataplane, ToyPlan, state_file


def _make(_: Settings) -> Dataplane[ToyPlan]:
    return ToyDataplane()


def _tracer(_: Settings, __: LocalAddresses) -> PacketTracer:
    raise UsageError("toy mode has no packets")


def _counters(_: Settings) -> ConnectionCounters:
    raise UsageError("toy mode counts no connections")


def _remove_leftovers(serving: Dataplane[Any] | None) -> Iterator[str]:
    if serving is None and state_file().exists():
        ToyDataplane().cleanup()
        yield f"file {state_file()}"


MODE = Mode(
    proxy_mode=ProxyMode("toy"),
    make=_make,
    tracer=_tracer,
    counters=_counters,
    remove_leftovers=_remove_leftovers,
)
