"""A small EndpointSlice controller: pods become slices of the Services that select them.

It works against the API over HTTP, in a thread of its own: it lists and watches services, pods,
nodes and slices, and writes the slices that differ from what `endpointslices.plan` says.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

import aiohttp
import msgspec

from pyproxy_lab import endpointslices, reflector
from pyproxy_lab.endpointslices import CONTROLLER, MANAGED_BY, SERVICE_NAME, ZONE, Object
from pyproxy_lab.reflector import Name, RequestError, name_of
from pyproxy_lab.workloads.work_queue import Key, WorkQueue

_SERVICES = "/api/v1/services"
_PODS = "/api/v1/pods"
_NODES = "/api/v1/nodes"
_SLICES = "/apis/discovery.k8s.io/v1/endpointslices"


class Controller:
    """Follows the API until it is stopped."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._token = token
        self._services: dict[Name, Object] = {}
        self._pods: dict[Name, Object] = {}
        self._nodes: dict[Name, Object] = {}
        self._slices: dict[Name, Object] = {}
        self._triggered: dict[Name, str] = {}
        self._queue = WorkQueue()

    @classmethod
    @contextlib.contextmanager
    def running(cls, url: str, token: str = "", netns: str = "") -> Iterator[Controller]:
        """Run a controller in a thread of its own, which connects in the network namespace `netns`.

        Empty stands for this process's own. The server's certificate is not checked.
        """
        controller = cls(url, token)
        with reflector.in_thread(controller.run(), "endpointslices", netns):
            yield controller

    async def run(self) -> None:
        """Follow the API, and write slices, until cancelled."""
        async with (
            reflector.session(self._url, self._token) as session,
            asyncio.TaskGroup() as group,
        ):
            await reflector.follow(
                session,
                group,
                [
                    (_SERVICES, self._services, self._service_changed),
                    (_PODS, self._pods, self._pod_changed),
                    (_NODES, self._nodes, self._node_changed),
                    (_SLICES, self._slices, self._slice_changed),
                ],
            )
            await self._queue.process(partial(self._work, session))

    async def _work(self, session: aiohttp.ClientSession, key: Key) -> None:
        """Write the slices of one Service."""
        name = key.namespace, key.name
        triggered = self._triggered.pop(name, None) or _now()
        try:
            await self._sync(session, name, triggered)
        except Exception:
            # The retry is late by as much as this attempt.
            self._triggered[name] = triggered
            raise

    async def _sync(self, session: aiohttp.ClientSession, name: Name, triggered: str) -> None:
        service = self._services.get(name)
        existing = [s for s in self._slices.values() if _owner(s) == name]
        if service is None:
            plan = endpointslices.Plan(delete=tuple(existing))
        elif not service["spec"].get("selector") or service["spec"]["type"] == "ExternalName":
            # Slices of a Service without selector are not this controller's; its old ones stay.
            return
        else:
            pods = [
                pod
                for (namespace, _), pod in self._pods.items()
                if namespace == name[0] and endpointslices.selects(service, _labels(pod))
            ]
            zones = {node: _labels(obj).get(ZONE, "") for (_, node), obj in self._nodes.items()}
            plan = endpointslices.plan(service, pods, zones, existing, triggered)
        for obj in plan.create:
            await self._write(session, "POST", _path(obj, of_list=True), obj)
        for obj in plan.update:
            await self._write(session, "PUT", _path(obj), obj)
        for obj in plan.delete:
            async with session.delete(_path(obj)) as response:
                if response.status not in {200, 404}:
                    raise RequestError(f"DELETE: {response.status}")
            self._slices.pop(name_of(obj), None)

    async def _write(
        self, session: aiohttp.ClientSession, method: str, path: str, obj: Object
    ) -> None:
        async with session.request(method, path, json=obj) as response:
            body = await response.read()
        if response.status not in {200, 201}:
            raise RequestError(f"{method}: {response.status} {body[:300]!r}")
        stored = msgspec.json.decode(body)
        # The watch may be behind what was just written, and the next plan must know it.
        self._slices[name_of(stored)] = stored

    def _mark(self, name: Name) -> None:
        # Of several changes the first is the one whose delay counts.
        self._triggered.setdefault(name, _now())
        self._queue.add(Key("services", *name))

    def _service_changed(self, old: Object | None, new: Object | None) -> None:
        self._mark(name_of(new or old or {}))

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        for name, service in self._services.items():
            for pod in filter(None, (old, new)):
                if name[0] == name_of(pod)[0] and _may_select(service, pod):
                    self._mark(name)

    def _node_changed(self, old: Object | None, new: Object | None) -> None:
        if _labels(old or {}).get(ZONE) != _labels(new or {}).get(ZONE):
            for name in self._services:
                self._mark(name)

    def _slice_changed(self, old: Object | None, new: Object | None) -> None:
        for found in filter(None, (old, new)):
            if owner := _owner(found):
                self._mark(owner)


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _labels(obj: Object) -> dict[str, str]:
    labels: dict[str, str] = obj.get("metadata", {}).get("labels") or {}
    return labels


def _may_select(service: Object, pod: Object) -> bool:
    """Return whether a Service selects a pod. One that cannot be read is left to its own sync."""
    try:
        return endpointslices.selects(service, _labels(pod))
    except (AttributeError, KeyError, TypeError):
        return True


def _owner(found: Object) -> Name | None:
    """Return the Service of a slice that this controller manages."""
    labels = _labels(found)
    if labels.get(MANAGED_BY) != CONTROLLER or SERVICE_NAME not in labels:
        return None
    return found["metadata"]["namespace"], labels[SERVICE_NAME]


def _path(obj: Object, of_list: bool = False) -> str:
    meta = obj["metadata"]
    base = f"/apis/discovery.k8s.io/v1/namespaces/{meta['namespace']}/endpointslices"
    return base if of_list else f"{base}/{meta['name']}"
