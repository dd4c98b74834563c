"""The kubelet of all nodes: it runs the pods that are bound to them, and serves their streams."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import msgspec

from pyproxy_lab import reflector
from pyproxy_lab.apiserver.exec import Request, StartError, Streams
from pyproxy_lab.apiserver.logs import LogSource
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.client import JsonObject
from pyproxy_lab.dns.resolv_conf import resolv_conf
from pyproxy_lab.failures import FailureLog
from pyproxy_lab.namespace import LabError
from pyproxy_lab.network import Network
from pyproxy_lab.node_exec import MIRROR
from pyproxy_lab.reflector import Name, RequestError, name_of
from pyproxy_lab.topology import Site, numbered_pod
from pyproxy_lab.workloads import nodes, service_environment, tools
from pyproxy_lab.workloads.container import Container
from pyproxy_lab.workloads.plan import MERGE, Happening, path_of
from pyproxy_lab.workloads.pod_worker import Place, PodWorker, Reports
from pyproxy_lab.workloads.probes import open_in
from pyproxy_lab.workloads.recorder import Recorder

log = logging.getLogger(__name__)

_HOSTS = range(100, 250)
"""The host parts of pods' addresses; a topology's own pods are below."""

_AT_ONCE = 2
"""Network namespaces that are made or removed at the same time."""

_PAUSE = 1.0
"""Seconds until a pod is tried again that could not be run."""


class Kubelet:
    """Follows the pods, and runs a worker for each. Most of it belongs to one event loop."""

    def __init__(self, server: ApiServer, network: Network, folder: Path) -> None:
        self._server = server
        self._network = network
        self._folder = folder
        self._tools = tools.provide(folder / "bin")
        self._sites = {site.node: site for site in network.topology.sites}
        self._pods: dict[Name, JsonObject] = {}
        self._services: dict[Name, JsonObject] = {}
        self._workers: dict[str, PodWorker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._numbers = itertools.count()
        self._free = {site.name: deque(_HOSTS) for site in network.topology.sites}
        self._wiring = asyncio.Semaphore(_AT_ONCE)
        self._recorder = Recorder("kubelet")
        self._failures = FailureLog()
        self._others = server.exec.runner
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    @contextlib.contextmanager
    def running(cls, server: ApiServer, network: Network, folder: Path) -> Iterator[Kubelet]:
        """Run pods until the block ends, and end all of them then; `folder` is for their logs.

        While it runs, `server` leaves the end of deleted pods to it.
        """
        folder.mkdir(exist_ok=True)
        kubelet = cls(server, network, folder)
        before = server.exec.runner
        server.exec.runner = kubelet.exec
        server.logs.find, server.port_forward.dial = kubelet.find_log, kubelet.dial
        server.registry.has_kubelet = True
        try:
            with reflector.in_thread(kubelet.run(), "kubelet", network.api.name):
                yield kubelet
        finally:
            server.registry.has_kubelet = False
            server.exec.runner = before
            server.logs.find = server.port_forward.dial = None

    async def run(self) -> None:
        """Follow the API until cancelled, then end all pods."""
        settings = self._server.settings
        try:
            async with (
                reflector.session(self._server.url, settings.token) as session,
                asyncio.TaskGroup() as group,
            ):
                self._session = session
                for site in self._sites.values():
                    for write in nodes.registration(site.node):
                        await self._send(write.method, write.path, write.body)
                # The Services first, whose variables the pods have.
                for path, cache, changed in (
                    ("/api/v1/services", self._services, reflector.unnoticed),
                    ("/api/v1/pods", self._pods, self._changed),
                ):
                    await reflector.follow(session, group, [(path, cache, changed)])
                await asyncio.Event().wait()
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def exec(self, request: Request, streams: Streams) -> int:
        """Run a command of the API server in a pod, or attach to it. Raises StartError."""
        worker = self._workers.get(request.pod["metadata"]["uid"])
        if worker is None:
            if self._others is None or not request.command:
                raise StartError(f"container not found ({request.container!r})")
            return await self._others(request, streams)
        container = worker.container(request.container)
        if container is None or not container.running:
            raise StartError(f"container not running ({request.container!r})")
        if not request.command:
            return await container.attach(streams, tty=request.tty)
        return await container.run(request.command, streams, tty=request.tty)

    def find_log(self, pod: JsonObject, container: str) -> LogSource | None:
        """Find the log of a container of a pod that has started."""
        uid = pod["metadata"]["uid"]
        worker = self._workers.get(uid)
        found = worker.container(container) if worker else None
        if found is None or not found.started:
            return None
        return LogSource(found.log, lambda: uid in self._workers and _grows(found))

    async def dial(
        self, pod: JsonObject, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a port inside a pod. Raises OSError."""
        worker = self._workers.get(pod["metadata"]["uid"])
        if worker is None:
            raise ConnectionRefusedError(0, "the pod does not run")
        return await open_in(worker.place.namespace, "127.0.0.1", port)

    def _changed(self, old: JsonObject | None, new: JsonObject | None) -> None:
        for obj in filter(None, (old, new)):
            obj["apiVersion"], obj["kind"] = "v1", "Pod"
        if old is not None and (new is None or new["metadata"]["uid"] != old["metadata"]["uid"]):
            self._tell(old["metadata"]["uid"], None)
        if new is None or new["spec"].get("nodeName") not in self._sites:
            return
        meta = new["metadata"]
        phase = new.get("status", {}).get("phase")
        if MIRROR in (meta.get("annotations") or {}):
            return
        if meta["uid"] in self._tasks:
            self._tell(meta["uid"], new)
        elif phase not in {"Succeeded", "Failed"} or meta.get("deletionTimestamp"):
            task = asyncio.get_running_loop().create_task(self._work(new))
            self._tasks[meta["uid"]] = task
            task.add_done_callback(lambda _: self._tasks.pop(meta["uid"], None))

    def _tell(self, uid: str, pod: JsonObject | None) -> None:
        if (worker := self._workers.get(uid)) is not None:
            worker.pod = pod
            worker.wake.set()

    async def _work(self, pod: JsonObject) -> None:
        """Run one pod from its namespace to its end; try again while it cannot be run."""
        uid = pod["metadata"]["uid"]
        unexpected = f"cannot run pod {'/'.join(name_of(pod))}: trying again"
        while (found := self._current(pod)) is not None:
            try:
                if await self._attempt(found):
                    break
            except Exception:
                self._failures.report(unexpected)
            finally:
                self._workers.pop(uid, None)
            await asyncio.sleep(_PAUSE)
        self._failures.forget(unexpected)

    async def _attempt(self, pod: JsonObject) -> bool:
        """Run one pod to its end; record an Event and return False if it cannot start."""
        try:
            await self._run(pod)
        except (LabError, OSError) as error:
            why = f"Failed to create pod sandbox: {error}"
            await self._record(Happening(pod, "Warning", "FailedCreatePodSandBox", why))
            return False
        return True

    def _current(self, pod: JsonObject) -> JsonObject | None:
        """Return the newest version of a pod, None once it is gone."""
        found = self._pods.get(name_of(pod))
        return found if found and found["metadata"]["uid"] == pod["metadata"]["uid"] else None

    async def _run(self, pod: JsonObject) -> None:
        site = self._sites[pod["spec"]["nodeName"]]
        host = site.addresses.ipv4
        node = self._network.namespace(site.name)
        used = self._network.topology.used
        if pod["spec"].get("hostNetwork"):
            place = Place(node, node, used(site.addresses), host)
            await self._run_in(place, pod)
            return
        number = self._take(site)
        name = f"k{next(self._numbers)}"
        order = self._network.topology.sites.index(site) + 1
        made = numbered_pod(name, order, number, ())
        try:
            async with self._wiring:
                await asyncio.to_thread(self._network.wire_pod, made)
            text = resolv_conf(pod["metadata"]["namespace"])
            self._network.write_resolv_conf(name, text)
            place = Place(self._network.namespace(name), node, used(made.addresses), host)
            await self._run_in(place, pod)
        finally:
            with contextlib.suppress(LabError, KeyError):
                await asyncio.shield(asyncio.to_thread(self._network.unwire_pod, name))
            # Last in the queue, so that no address comes back soon.
            self._free[site.name].append(number)

    async def _run_in(self, place: Place, pod: JsonObject) -> None:
        reports = Reports(self._write_status, self._record, self._delete)
        variables = service_environment.variables(pod, self._services.values())
        place = msgspec.structs.replace(place, variables=variables)
        worker = PodWorker(pod, place, self._folder, self._tools, reports)
        self._workers[pod["metadata"]["uid"]] = worker
        worker.pod = self._current(pod)
        await worker.run()

    def _take(self, site: Site) -> int:
        try:
            return self._free[site.name].popleft()
        except IndexError:
            raise LabError(f"{site.node} has no free pod address") from None

    async def _write_status(self, pod: JsonObject, status: JsonObject) -> None:
        await self._send("PATCH", f"{path_of('pods', pod)}/status", {"status": status})

    async def _delete(self, pod: JsonObject) -> None:
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        await self._send("DELETE", path_of("pods", pod), body)

    async def _record(self, happening: Happening) -> None:
        for write in self._recorder.writes(happening, datetime.now(UTC)):
            await self._send(write.method, write.path, write.body)

    async def _send(self, method: str, path: str, body: JsonObject | None) -> None:
        """Write to the API. An object that is gone needs no write, and a refusal is logged."""
        if self._session is None:
            raise RequestError("the kubelet has not been started")
        headers = {"Content-Type": MERGE if method == "PATCH" else "application/json"}
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(method, path, data=data, headers=headers) as response:
                await response.read()
                if response.status >= 300 and response.status not in {404, 409}:
                    log.debug("%s %s: %d", method, path, response.status)
        except aiohttp.ClientError as error:
            log.debug("%s %s: %s", method, path, error)


def _grows(container: Container) -> bool:
    return container.exit_code is None
