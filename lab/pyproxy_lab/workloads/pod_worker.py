"""One pod on its node, from its namespace to its end: containers, probes, restarts, status."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from pyproxy_lab.client import JsonObject
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.workloads import pod_status, probes
from pyproxy_lab.workloads.container import Container, inside
from pyproxy_lab.workloads.objects import is_leaving, written
from pyproxy_lab.workloads.plan import Happening
from pyproxy_lab.workloads.pod_status import BACK_OFF, ContainerState
from pyproxy_lab.workloads.probes import Outcome, Probe

_TICK = 0.1
"""Seconds between two looks at the processes."""

_FASTEST_PROBE, _HURRY = 0.1, 10.0
"""Seconds between readiness probes of a container that starts, and how long it counts as such."""

_LONGEST_BACK_OFF = 10.0


class Place(msgspec.Struct, frozen=True):
    """Where a pod runs: its own namespace, its node's, and its addresses, the primary first.

    `variables` are what the cluster adds to the environment of its containers.
    """

    namespace: Namespace
    node: Namespace
    addresses: tuple[str, ...]
    host: str
    variables: Mapping[str, str] = {}


class Reports(msgspec.Struct, frozen=True):
    """How a worker writes to the API: a pod's status, an Event, and the deletion of a dead pod."""

    status: Callable[[JsonObject, JsonObject], Awaitable[None]]
    event: Callable[[Happening], Awaitable[None]]
    gone: Callable[[JsonObject], Awaitable[None]]


class _Unit:
    """A container with its probes and the times of its state."""

    def __init__(self, container: Container, spec: JsonObject) -> None:
        self.container = container
        self.readiness = probes.parse(spec, "readinessProbe")
        self.opening = Probe(port=container.first_port, failures=1)
        """Succeeds once the lab's server has opened its ports, which takes it a moment."""
        self.liveness = probes.parse(spec, "livenessProbe")
        self.ready = Outcome(False)
        self.live = Outcome(True)
        self.started_at = self.finished_at = ""
        self.began = 0.0
        self.back_off = 0.0
        self.restart_at: float | None = None
        self.last: JsonObject = {}
        self.due: dict[str, float] = {}

    def state(self) -> ContainerState:
        """Return what the pod's status shows of it."""
        waiting = self.restart_at is not None
        return ContainerState(
            name=self.container.name,
            image=self.container.image,
            ready=self.container.running and not waiting and self.ready.passing,
            restarts=self.container.restarts,
            exit_code=self.container.exit_code,
            waiting=BACK_OFF if waiting and self.back_off else "",
            started_at=self.started_at,
            finished_at=self.finished_at,
            last=self.last,
        )


class PodWorker:
    """Runs one pod. `pod` is its newest object, None once it is gone; `wake` says it changed."""

    def __init__(
        self, pod: JsonObject, place: Place, folder: Path, tools: Path, reports: Reports
    ) -> None:
        self.pod: JsonObject | None = pod
        self.place = place
        self.wake = asyncio.Event()
        self._reports = reports
        self._started = written(datetime.now(UTC))
        self._written: JsonObject = {}
        self._units = [
            _Unit(Container(spec, pod, place.namespace.name, folder, tools, place.variables), spec)
            for spec in pod["spec"]["containers"]
        ]

    def container(self, name: str) -> Container | None:
        """Return a container by its name."""
        for unit in self._units:
            if unit.container.name == name:
                return unit.container
        return None

    async def run(self) -> None:
        """Run the pod until its object is gone, or has been deleted and its processes ended."""
        try:
            for unit in self._units:
                await self._start(unit)
            while self.pod is not None and not is_leaving(self.pod):
                for unit in self._units:
                    await self._look_after(unit, self.pod)
                await self._report(self.pod)
                await self._pause()
            if self.pod is not None:
                await self._terminate()
        finally:
            for unit in self._units:
                unit.container.kill(signal.SIGKILL)
            for unit in self._units:
                await unit.container.wait()
            for unit in self._units:
                unit.container.log.unlink(missing_ok=True)

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TICK):
                await self.wake.wait()
        self.wake.clear()

    async def _start(self, unit: _Unit) -> None:
        unit.restart_at = None
        unit.ready, unit.live = Outcome(False), Outcome(True)
        unit.started_at, unit.finished_at = written(datetime.now(UTC)), ""
        unit.began = asyncio.get_running_loop().time()
        unit.due.clear()
        await unit.container.start()
        await self._happen("Normal", "Started", f"Started container {unit.container.name}")

    async def _look_after(self, unit: _Unit, pod: JsonObject) -> None:
        """Restart a container that has ended or has a new image, and make its probes."""
        now = asyncio.get_running_loop().time()
        container = unit.container
        image = next(c["image"] for c in pod["spec"]["containers"] if c["name"] == container.name)
        if unit.restart_at is not None:
            if now >= unit.restart_at:
                container.restarts += 1
                await self._start(unit)
            return
        if image != container.image:
            container.image = image
            await self._kill(
                unit, f"Container {container.name} definition changed, will be restarted"
            )
        code = container.poll()
        if code is None:
            await self._probe(unit, pod, now)
            return
        unit.finished_at = unit.finished_at or written(datetime.now(UTC))
        if pod_status.restarts(code, pod["spec"]["restartPolicy"]):
            unit.last = pod_status.terminated(unit.state())
            unit.restart_at = now + unit.back_off
            if unit.back_off:
                message = f"Back-off restarting failed container {container.name}"
                await self._happen("Warning", "BackOff", message)
            unit.back_off = min(max(unit.back_off * 2, 1.0), _LONGEST_BACK_OFF)

    async def _probe(self, unit: _Unit, pod: JsonObject, now: float) -> None:
        for kind, probe, outcome, annotation in (
            ("Readiness", unit.readiness, unit.ready, probes.READY),
            ("Liveness", unit.liveness, unit.live, probes.LIVE),
        ):
            if probes.forced(pod, annotation):
                if outcome.passing:
                    why = f"the pod's annotation {annotation} is false"
                    await self._happen("Warning", "Unhealthy", f"{kind} probe failed: {why}")
                outcome.passing = False
            elif probe.is_empty:
                outcome.passing = outcome.passing or not await self._opens(unit)
            elif now >= unit.due.get(kind, unit.began + probe.delay):
                why = await self._attempt(unit, probe)
                # A probe that has not succeeded yet is made often, so that pods get ready soon.
                hurry = kind == "Readiness" and not outcome.passing and now < unit.began + _HURRY
                unit.due[kind] = now + min(_FASTEST_PROBE if hurry else probe.period, probe.period)
                outcome.add(not why, probe)
                if why and not outcome.passing and now >= unit.due.get(f"{kind} event", 0.0):
                    unit.due[f"{kind} event"] = now + probe.period
                    await self._happen("Warning", "Unhealthy", f"{kind} probe failed: {why}")
        if not unit.live.passing:
            await self._kill(unit, f"Container {unit.container.name} failed liveness probe")

    async def _opens(self, unit: _Unit) -> str:
        """Return why a server without a probe is not ready yet, empty once it is."""
        if not unit.opening.port:
            return ""
        return await self._attempt(unit, unit.opening)

    async def _attempt(self, unit: _Unit, probe: Probe) -> str:
        """Make one probe; return why it failed."""
        if probe.port:
            return await probes.connect(self.place.node, self.place.addresses[0], probe)
        container = unit.container
        name = container.environment()["HOSTNAME"]
        process = await asyncio.create_subprocess_exec(
            *inside(self.place.namespace.name, name, probe.command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=container.environment(),
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(probe.timeout):
                code = await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            return "command timed out"
        return f"command ended with status {code}" if code else ""

    async def _kill(self, unit: _Unit, why: str) -> None:
        """End a container's process, so that it starts again by its pod's restartPolicy."""
        await self._happen("Normal", "Killing", why)
        unit.container.kill(signal.SIGKILL)
        await unit.container.wait()

    async def _terminate(self) -> None:
        """Run preStop hooks, send SIGTERM, and SIGKILL when the grace period is over."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for unit in self._units:
            await self._happen("Normal", "Killing", f"Stopping container {unit.container.name}")
        stopping = asyncio.ensure_future(self._stop())
        try:
            while self.pod is not None and not stopping.done():
                grace = self.pod["metadata"].get("deletionGracePeriodSeconds", 0)
                if loop.time() - begun > grace:
                    break
                await self._report(self.pod)
                await self._pause()
        finally:
            stopping.cancel()
            await asyncio.gather(stopping, return_exceptions=True)
            for unit in self._units:
                unit.container.kill(signal.SIGKILL)
        if self.pod is not None:
            for unit in self._units:
                await unit.container.wait()
            await self._reports.gone(self.pod)

    async def _stop(self) -> None:
        pod = self.pod
        if pod is None:
            return
        hooks = [self._before_stop(spec) for spec in pod["spec"]["containers"]]
        await asyncio.gather(*hooks)
        for unit in self._units:
            unit.container.kill(signal.SIGTERM)
        for unit in self._units:
            await unit.container.wait()

    async def _before_stop(self, spec: JsonObject) -> None:
        hook: dict[str, Any] = (spec.get("lifecycle") or {}).get("preStop") or {}
        if seconds := (hook.get("sleep") or {}).get("seconds"):
            await asyncio.sleep(seconds)
        if command := (hook.get("exec") or {}).get("command"):
            container = self.container(spec["name"])
            if container is not None:
                probe = Probe(command=tuple(command), timeout=3600.0)
                unit = next(each for each in self._units if each.container is container)
                await self._attempt(unit, probe)

    async def _report(self, pod: JsonObject) -> None:
        """Write the pod's status if it has changed."""
        now = written(datetime.now(UTC))
        status = pod_status.status(
            [unit.state() for unit in self._units],
            restart=pod["spec"]["restartPolicy"],
            before=self._written,
            now=now,
        )
        status |= pod_status.place(self.place.addresses, self.place.host, self._started)
        if status != self._written:
            await self._reports.status(pod, status)
            self._written = status

    async def _happen(self, kind: str, reason: str, message: str) -> None:
        if self.pod is not None:
            await self._reports.event(Happening(self.pod, kind, reason, message))
