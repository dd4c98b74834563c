"""Requests about objects, from HTTP to the registry and back."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Iterable

import msgspec
from aiohttp import web

from pyproxy_lab.apiserver import (
    access,
    listing,
    patch,
    refused,
    requests,
    scale,
    status,
    strategic,
)
from pyproxy_lab.apiserver.encodings import Cause, Encodings
from pyproxy_lab.apiserver.exec import ExecHandler
from pyproxy_lab.apiserver.faults import Faults
from pyproxy_lab.apiserver.kinds import events
from pyproxy_lab.apiserver.logs import LogHandler
from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.portforward import PortForwardHandler
from pyproxy_lab.apiserver.registry import Deletion, Registry
from pyproxy_lab.apiserver.rendering import Rendering, rendering
from pyproxy_lab.apiserver.requests import Target
from pyproxy_lab.apiserver.resources import EVENTS, NAMESPACES
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.apiserver.store import Stored, encode
from pyproxy_lab.apiserver.watch import Watch

_NO_CACHE = {"Cache-Control": "no-cache, private"}
_CHUNKED_FROM = 4096
_STREAMS = {"attach", "exec", "log", "portforward"}
# kube-apiserver's threshold and level.
_GZIP_FROM, _GZIP_LEVEL = 128 << 10, 1
_PATCHERS: dict[str, Callable[[Object, object], object]] = {
    "application/json-patch+json": patch.apply_operations,
    "application/merge-patch+json": patch.merge,
    "application/strategic-merge-patch+json": strategic.apply,
}


class ResourceHandler:
    """Handles all requests below /api/v1 and /apis/GROUP/VERSION."""

    def __init__(self, settings: Settings, registry: Registry, faults: Faults) -> None:
        self._settings = settings
        self._registry = registry
        self._faults = faults
        self.watches: set[Watch] = set()
        self.encodings = Encodings()
        self.exec = ExecHandler()
        self.logs = LogHandler()
        self.port_forward = PortForwardHandler()

    async def handle(self, request: web.Request, user: access.User) -> web.StreamResponse:
        """Handle one request. Raises ApiError."""
        where = requests.target(request.path)
        if where is None:
            refused.check(request.method, request.path)
            raise status.no_such_path()
        doing = requests.action(request.method, where, request.query)
        access.authorize(user, doing)
        if where.subresource in _STREAMS:
            return await self._stream(request, where, user, doing)
        if request.query.get("dryRun"):
            raise status.bad_request("dryRun is not supported")
        answers = {
            "get": self._get,
            "list": self._list,
            "watch": self._watch,
            "create": self._create,
            "update": self._update,
            "patch": self._patch,
            "delete": self._delete,
            "deletecollection": self._delete_all,
        }
        if doing.verb not in answers:
            raise status.not_allowed()
        return await answers[doing.verb](request, where)

    async def _stream(
        self, request: web.Request, where: Target, user: access.User, doing: access.Action
    ) -> web.StreamResponse:
        """Handle exec, attach, portforward and log: streams of a pod."""
        if doing.verb not in {"get", "create"}:
            raise status.not_allowed()
        if where.subresource != "log":
            # Since 1.35 a WebSocket, which begins with a GET, needs the verb create as well.
            access.authorize(user, msgspec.structs.replace(doing, verb="create"))
        pod = self._registry.find(where.resource, where.namespace, where.name).decode()
        match where.subresource:
            case "log":
                return await self.logs.handle(request, pod)
            case "portforward":
                return await self.port_forward.handle(request, pod)
        return await self.exec.handle(request, pod, attach=where.subresource == "attach")

    async def _get(self, request: web.Request, where: Target) -> web.Response:
        found = self._registry.find(where.resource, where.namespace, where.name)
        return self._respond(request, where, found)

    async def _list(self, request: web.Request, where: Target) -> web.StreamResponse:
        known = self._registry.rules(where.resource).fields
        options = requests.list_options(where, request.query, known)
        store = self._registry.store
        page = listing.page(store, store.table(where.resource), options)
        shape = self._rendering(request, where)
        self.encodings.add(shape.media_type, Cause.LIST, len(page.objects))
        pieces = shape.listing(page.objects, page.meta)
        return await _send_pieces(request, self._faults.body(pieces), shape.media_type)

    async def _watch(self, request: web.Request, where: Target) -> web.StreamResponse:
        registry, resource = self._registry, where.resource
        options = requests.watch_options(
            where,
            request.query,
            registry.rules(resource).fields,
            streaming_lists=self._settings.streaming_lists,
        )
        timeout = options.timeout / self._settings.speed
        options = msgspec.structs.replace(options, timeout=timeout)
        table = registry.store.table(resource)
        shape = self._rendering(request, where)
        response = web.StreamResponse(headers={**_NO_CACHE, "Content-Type": shape.stream_type})
        response.enable_chunked_encoding()
        watch = Watch(registry.store, table, shape, options, self.encodings)
        try:
            watch.start()
        except status.ApiError as error:
            if error.code != 410:
                raise
            await response.prepare(request)
            await response.write(shape.error(error.status))
            await response.write_eof()
            return response
        self.watches.add(watch)
        try:
            await response.prepare(request)
            lines = watch.lines(self._settings.bookmark_interval)
            async for chunk in self._faults.stream(lines):
                await response.write(chunk)
            await response.write_eof()
        except ConnectionResetError:
            pass  # the client has closed the connection
        finally:
            watch.stop()
            self.watches.discard(watch)
        return response

    async def _create(self, request: web.Request, where: Target) -> web.Response:
        warnings: list[str] = []
        obj = await requests.read_object(request, where, warnings)
        if where.name or (where.resource.namespaced and not where.namespace):
            raise status.not_allowed()
        created = self._registry.create(where.resource, where.namespace, obj)
        warnings += self._registry.rules(where.resource).warnings(created.decode())
        return self._respond(request, where, created, code=201, warnings=warnings)

    async def _update(self, request: web.Request, where: Target) -> web.Response:
        if not where.name:
            raise status.not_allowed()
        if where.subresource == "scale":
            return await self._scale(request, where)
        warnings: list[str] = []
        obj = await requests.read_object(request, where, warnings)
        meta = obj.setdefault("metadata", {})
        if meta.setdefault("name", where.name) != where.name:
            raise status.bad_request(
                f"the name of the object ({meta['name']}) does not match the name on the URL "
                f"({where.name})"
            )
        registry, resource = self._registry, where.resource
        may_create = registry.rules(resource).creates_on_update and not where.subresource
        try:
            old = registry.find(resource, where.namespace, where.name)
        except status.ApiError:
            if not may_create or meta.get("resourceVersion"):
                raise
            created = registry.create(resource, where.namespace, obj)
            return self._respond(request, where, created, code=201, warnings=warnings)
        stored = registry.update(resource, old, lambda before: obj, where.subresource)  # noqa: ARG005
        return self._respond(request, where, stored, warnings=warnings)

    async def _patch(self, request: web.Request, where: Target) -> web.Response:
        if not where.name:
            raise status.not_allowed()
        if where.subresource == "scale":
            return await self._scale(request, where)
        content = await requests.read_patch(request)
        patcher = _PATCHERS[request.content_type]
        resource, warnings = where.resource, list[str]()

        def change(before: Object) -> Object:
            shown = events.to_events(before) if resource is EVENTS else before
            patched = patcher(shown, content)
            if not isinstance(patched, dict):
                raise status.bad_request("the patch does not give an object")
            return requests.checked_object(patched, resource, request.query, warnings)

        old = self._registry.find(resource, where.namespace, where.name)
        stored = self._registry.update(resource, old, change, where.subresource)
        return self._respond(request, where, stored, warnings=warnings)

    async def _scale(self, request: web.Request, where: Target) -> web.Response:
        """Change the replicas by a Scale, whole or as a patch."""
        if request.method == "PATCH":
            content = await requests.read_patch(request)
            patcher = _PATCHERS[request.content_type]
        else:
            content = await requests.read_json(request)
            patcher = _replace

        def change(before: Object) -> Object:
            return scale.apply(before, patcher(scale.scale_of(before), content))

        old = self._registry.find(where.resource, where.namespace, where.name)
        return self._respond(request, where, self._registry.update(where.resource, old, change))

    async def _delete(self, request: web.Request, where: Target) -> web.Response:
        if where.subresource:
            raise status.not_allowed()
        how = await requests.read_deletion(request)
        registry, resource = self._registry, where.resource
        old = registry.find(resource, where.namespace, where.name)
        gone = self._delete_one(where, old, how)
        if registry.rules(resource).returns_deleted:
            return self._respond(request, where, gone)
        details = {"name": old.name, "group": resource.group, "kind": resource.plural}
        answer = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": {k: v for k, v in details.items() if v} | {"uid": old.uid},
        }
        return web.Response(body=encode(answer), content_type="application/json", headers=_NO_CACHE)

    async def _delete_all(self, request: web.Request, where: Target) -> web.StreamResponse:
        if where.resource is NAMESPACES:
            raise status.not_allowed()
        how = await requests.read_deletion(request)
        known = self._registry.rules(where.resource).fields
        chosen = requests.selector(request.query, known)
        store = self._registry.store
        table = store.table(where.resource)
        found = [stored for stored in table.current(where.prefix) if chosen.matches(stored)]
        gone = [self._delete_one(where, stored, how) for stored in found]
        meta: Object = {"resourceVersion": str(store.revision)}
        shape = self._rendering(request, where)
        return await _send_pieces(request, shape.listing(gone, meta), shape.media_type)

    def _delete_one(self, where: Target, old: Stored, how: Deletion) -> Stored:
        registry, resource = self._registry, where.resource
        marked = registry.delete(resource, old, how)
        if registry.has_kubelet:
            return marked
        if how.grace and registry.store.table(resource).get(old.path) is marked:
            # No kubelet ends pods here: the grace period does.
            asyncio.get_running_loop().call_later(how.grace, registry.finish, resource, marked)
        return marked

    def _respond(
        self,
        request: web.Request,
        where: Target,
        stored: Stored,
        code: int = 200,
        warnings: Iterable[str] = (),
    ) -> web.Response:
        if where.subresource == "scale":
            shown = scale.scale_of(stored.decode())
            return web.json_response(shown, headers=_NO_CACHE)
        shape = self._rendering(request, where)
        response = web.Response(
            status=code,
            body=shape.body(stored),
            content_type=shape.media_type,
            headers=_NO_CACHE,
        )
        deprecated = (where.resource.deprecation,) if where.resource.deprecation else ()
        for warning in (*deprecated, *warnings):
            escaped = warning.replace("\\", "\\\\").replace('"', '\\"')
            response.headers.add("Warning", f'299 - "{escaped}"')
        return response

    def _rendering(self, request: web.Request, where: Target) -> Rendering:
        accept = request.headers.get("Accept", "*/*")
        include = request.query.get("includeObject", "")
        return rendering(where.resource, accept, include, has_protobuf=self._settings.protobuf)


def _replace(before: Object, content: object) -> object:
    del before
    return content


async def _send_pieces(
    request: web.Request, pieces: Iterable[bytes], media_type: str
) -> web.StreamResponse:
    """Send a body whole if it is short, and in chunks as they are made if not.

    A long body is compressed for a client that accepts gzip.
    """
    start = b""
    rest = iter(pieces)
    accepts_gzip = "gzip" in request.headers.get("Accept-Encoding", "")
    for piece in rest:
        start += piece
        if len(start) >= _CHUNKED_FROM and not (accepts_gzip and len(start) <= _GZIP_FROM):
            break
    else:
        return web.Response(body=start, content_type=media_type, headers=_NO_CACHE)
    if accepts_gzip and len(start) > _GZIP_FROM:
        packed = gzip.compress(b"".join([start, *rest]), _GZIP_LEVEL)
        headers = {**_NO_CACHE, "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        return web.Response(body=packed, content_type=media_type, headers=headers)
    response = web.StreamResponse(headers={**_NO_CACHE, "Content-Type": media_type})
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(start)
    for piece in rest:
        await response.write(piece)
    await response.write_eof()
    return response
