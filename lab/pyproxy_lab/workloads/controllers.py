"""The controllers' loop: it follows the API, plans one object at a time, and writes the plans."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial

import aiohttp
import msgspec

from pyproxy_lab import reflector
from pyproxy_lab.client import JsonObject
from pyproxy_lab.endpointslices import SERVICE_NAME
from pyproxy_lab.reflector import RequestError, name_of
from pyproxy_lab.workloads import (
    daemonset,
    deployment,
    endpoints,
    load_balancers,
    objects,
    replicaset,
    scheduler,
    statefulset,
)
from pyproxy_lab.workloads.cache import GARBAGE, KINDS, Cache
from pyproxy_lab.workloads.plan import MERGE, PLURALS, ROOTS, Happening, Plan, Write, path_of
from pyproxy_lab.workloads.recorder import Recorder
from pyproxy_lab.workloads.work_queue import Key, WorkQueue

log = logging.getLogger(__name__)

_STALE = {404, 409}
"""Responses to a write that was planned from old objects: the watch will bring the new ones."""


class Controllers:
    """Follows the API until it is stopped. `now` is the time, with a time zone."""

    def __init__(self, url: str, token: str, now: Callable[[], datetime]) -> None:
        self._url = url
        self._token = token
        self._now = now
        self._cache = Cache()
        self._queue = WorkQueue()
        self._recorders = {
            plural: Recorder(name)
            for plural, name in (
                ("deployments", "deployment-controller"),
                ("replicasets", "replicaset-controller"),
                ("statefulsets", "statefulset-controller"),
                ("daemonsets", "daemonset-controller"),
                ("pods", "default-scheduler"),
            )
        }

    @classmethod
    @contextlib.contextmanager
    def running(cls, url: str, token: str = "", netns: str = "") -> Iterator[Controllers]:
        """Run all controllers in a thread, which connects in the network namespace `netns`.

        Empty stands for this process's own. The server's certificate is not checked.
        """
        made = cls(url, token, partial(datetime.now, UTC))
        with reflector.in_thread(made.run(), "controllers", netns):
            yield made

    async def run(self) -> None:
        """Follow the API, and reconcile, until cancelled."""
        async with (
            reflector.session(self._url, self._token) as session,
            asyncio.TaskGroup() as group,
        ):
            kinds: list[tuple[str, dict[reflector.Name, JsonObject], reflector.Changed]] = [
                (
                    f"{ROOTS.get(plural, '/api/v1')}/{plural}",
                    self._cache.objects[plural],
                    partial(self._changed, plural),
                )
                for plural in KINDS
            ]
            await reflector.follow(session, group, kinds)
            await self._queue.process(partial(self._work, session))

    async def _work(self, session: aiohttp.ClientSession, key: Key) -> float | None:
        """Reconcile one object; return the seconds until it is looked at again, if it is."""
        plan = self._plan(key)
        for write in plan.writes:
            await self._write(session, write)
        for happening in plan.events:
            await self._record(session, happening)
        return plan.again

    def _plan(self, key: Key) -> Plan:
        """Return what to do with one object, from what is known now."""
        if key.plural.startswith(GARBAGE):
            return self._cache.plan_garbage(key._replace(plural=key.plural.removeprefix(GARBAGE)))
        if key.plural == "services":
            return self._plan_service(key)
        obj = self._cache.get(key)
        return Plan() if obj is None else self._plan_workload(key, obj)

    def _plan_service(self, key: Key) -> Plan:
        """Make a Service's Endpoints, and grant its address."""
        slices = [
            each
            for each in self._cache.within("endpointslices", key.namespace)
            if (each["metadata"].get("labels") or {}).get(SERVICE_NAME) == key.name
        ]
        service = self._cache.get(key)
        mirrored = endpoints.plan(
            service, slices, self._cache.get(key._replace(plural="endpoints"))
        )
        if service is None:
            return mirrored
        granted = load_balancers.plan(service, self._cache.objects["services"].values())
        return Plan(mirrored.writes + granted.writes)

    def _plan_workload(self, key: Key, obj: JsonObject) -> Plan:
        now = self._now()
        within = partial(self._cache.within, namespace=key.namespace)
        pods, revisions = within("pods"), within("controllerrevisions")
        match key.plural:
            case "deployments":
                return deployment.plan(obj, within("replicasets"), now)
            case "replicasets":
                return replicaset.plan(obj, pods, now)
            case "statefulsets":
                return statefulset.plan(obj, pods, revisions, now)
            case "daemonsets":
                return daemonset.plan(obj, pods, self._cache.nodes(), revisions, now)
        every = self._cache.objects["pods"].values()
        return scheduler.plan(obj, self._cache.nodes(), every, now)

    async def _write(self, session: aiohttp.ClientSession, write: Write) -> None:
        """Write, and remember the response: the watch may be behind it. Raises RequestError."""
        if write.owner is not None:
            await self._require(session, write.owner)
        headers = {"Content-Type": MERGE if write.method == "PATCH" else "application/json"}
        body = None if write.body is None else msgspec.json.encode(write.body)
        async with session.request(
            write.method, write.path, data=body, headers=headers
        ) as response:
            raw = await response.read()
        if response.status in _STALE and write.method == "DELETE":
            return
        if response.status not in {200, 201}:
            raise RequestError(f"{write.method} {write.path}: {response.status} {raw[:300]!r}")
        stored = msgspec.json.decode(raw)
        if stored.get("kind") == "Status" or write.plural not in KINDS:
            return
        cache = self._cache.objects[write.plural]
        name = name_of(stored)
        before = cache.get(name)
        gone = write.method == "DELETE" and not objects.is_leaving(stored)
        if gone:
            cache.pop(name, None)
        else:
            cache[name] = stored
        self._changed(write.plural, before, None if gone else stored)
        if write.method == "POST" and write.plural == "pods":
            await self._announce(session, stored)

    async def _require(self, session: aiohttp.ClientSession, obj: JsonObject) -> None:
        """Read an object, and raise RequestError if it is gone or leaving: the cache may be old.

        Kubernetes' controllers do so before they adopt objects.
        """
        path = path_of(PLURALS[obj["kind"]], obj)
        async with session.get(path) as response:
            raw = await response.read()
        found = msgspec.json.decode(raw) if response.status == 200 else obj
        if response.status != 200 or objects.is_leaving(found):
            raise RequestError(f"GET {path}: {response.status}: nothing is adopted")
        if found["metadata"]["uid"] != obj["metadata"]["uid"]:
            raise RequestError(f"GET {path}: another object has this name: nothing is adopted")

    async def _announce(self, session: aiohttp.ClientSession, pod: JsonObject) -> None:
        """Record that a controller has made a pod, whose name the server chose."""
        reference = objects.controller_of(pod)
        if reference is None or reference["kind"] not in {"ReplicaSet", "DaemonSet"}:
            return
        space, plural = pod["metadata"]["namespace"], PLURALS[reference["kind"]]
        owner = self._cache.get(Key(plural, space, reference["name"]))
        if owner is not None:
            message = f"Created pod: {pod['metadata']['name']}"
            await self._record(session, Happening(owner, "Normal", "SuccessfulCreate", message))

    async def _record(self, session: aiohttp.ClientSession, happening: Happening) -> None:
        recorder = self._recorders[PLURALS[happening.about["kind"]]]
        for write in recorder.writes(happening, self._now()):
            try:
                await self._write(session, write)
            except RequestError as error:
                # An Event is no reason to plan again: its namespace may be gone.
                log.debug("event: %s", error)

    def _changed(self, plural: str, old: JsonObject | None, new: JsonObject | None) -> None:
        if new is not None:
            # The items of a list have neither.
            new["apiVersion"], new["kind"] = KINDS[plural]
        for key in self._cache.concerned(plural, old, new):
            self._queue.add(key)
