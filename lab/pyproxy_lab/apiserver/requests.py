"""Parse requests: path, query, body."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from aiohttp import web

from pyproxy_lab.apiserver import protobuf, resources, schema, status
from pyproxy_lab.apiserver.access import Action
from pyproxy_lab.apiserver.kinds import events
from pyproxy_lab.apiserver.listing import ListOptions, parse_version
from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.registry import Deletion
from pyproxy_lab.apiserver.resources import Resource
from pyproxy_lab.apiserver.selectors import Selector, parse_fields, parse_labels
from pyproxy_lab.apiserver.watch import FROM_NOW, WatchOptions

_DEFAULT_WATCH_SECONDS = 1800
_JSON = ("application/json",)
PATCHES = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
)
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class Target(msgspec.Struct, frozen=True):
    """The resource and object that a path below /api or /apis names."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def prefix(self) -> str:
        """The beginning of the paths of the objects that a list of this is about."""
        return f"/{self.namespace}/" if self.namespace else "/"


def target(path: str) -> Target | None:
    """Read a path such as /api/v1/namespaces/default/services/web/status."""
    split = resources.split_path(path)
    if split is None:
        return None
    group, version, rest = split
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces":
        inner = resources.by_path(group, version, rest[2])
        if inner is not None and inner.namespaced:
            namespace, rest = rest[1], rest[2:]
    if not 1 <= len(rest) <= 3 or not all(rest):
        return None
    resource = resources.by_path(group, version, rest[0])
    if resource is None:
        return None
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    if subresource and subresource not in resource.subresources:
        return None
    if name and resource.namespaced and not namespace:
        return None
    return Target(resource, namespace, name, subresource)


def action(method: str, where: Target, query: Mapping[str, str]) -> Action:
    """Return the verb and resource of a request."""
    if method in {"GET", "HEAD"}:
        verb = "get" if where.name else "watch" if is_true(query, "watch") else "list"
    else:
        verb = _VERBS.get(method, method.lower())
        if verb == "delete" and not where.name:
            verb = "deletecollection"
    return Action(verb, where.resource, where.namespace, where.name, where.subresource)


def is_true(query: Mapping[str, str], name: str) -> bool:
    """Read a flag of the query."""
    return query.get(name, "").lower() in {"1", "t", "true"}


def selector(query: Mapping[str, str], known: frozenset[str]) -> Selector:
    """Read labelSelector and fieldSelector. Raises ApiError (400)."""
    return Selector(
        labels=parse_labels(query.get("labelSelector", "")),
        fields=parse_fields(query.get("fieldSelector", ""), known),
    )


def list_options(where: Target, query: Mapping[str, str], known: frozenset[str]) -> ListOptions:
    """Read the query of a list. Raises ApiError (400)."""
    return ListOptions(
        prefix=where.prefix,
        selector=selector(query, known),
        limit=_number(query, "limit"),
        token=query.get("continue", ""),
        version=query.get("resourceVersion", ""),
        match=query.get("resourceVersionMatch", ""),
    )


def watch_options(
    where: Target,
    query: Mapping[str, str],
    known: frozenset[str],
    *,
    streaming_lists: bool = True,
) -> WatchOptions:
    """Read the query of a watch. Raises ApiError (400, 422)."""
    if "sendInitialEvents" in query and not streaming_lists:
        raise _bad_watch(
            where,
            "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the "
            "WatchList feature gate is enabled",
        )
    initial = is_true(query, "sendInitialEvents")
    match = query.get("resourceVersionMatch", "")
    if initial and match != "NotOlderThan":
        raise _bad_watch(
            where,
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting "
            "resourceVersionMatch to NotOlderThan",
        )
    if match and "sendInitialEvents" not in query:
        raise _bad_watch(
            where,
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless "
            "sendInitialEvents is provided",
        )
    version = parse_version(query.get("resourceVersion") or "0")
    bookmarks = is_true(query, "allowWatchBookmarks")
    from_now = version == 0 and "sendInitialEvents" in query and not initial
    return WatchOptions(
        prefix=where.prefix,
        selector=selector(query, known),
        revision=FROM_NOW if from_now else None if initial or version == 0 else version,
        bookmarks=bookmarks,
        initial_end=initial and bookmarks,
        timeout=float(_number(query, "timeoutSeconds") or _DEFAULT_WATCH_SECONDS),
    )


async def read_object(request: web.Request, where: Target, warnings: list[str]) -> Object:
    """Read the object that a body holds, in the form in which it is kept.

    Raises ApiError: 400 for what is no such object, 415 for another format than JSON, Namespaces
    and Services in protobuf aside.
    """
    if request.content_type == protobuf.MEDIA_TYPE:
        obj: object = _from_protobuf(await request.read())
    elif request.content_type in {*_JSON, "application/octet-stream"}:
        obj = await _decoded(request)
    else:
        raise status.unsupported_media(_JSON)
    if not isinstance(obj, dict):
        raise status.bad_request("the body of the request is no JSON object")
    return checked_object(obj, where.resource, request.query, warnings)


async def read_patch(request: web.Request) -> object:
    """Read a patch. Raises ApiError: 400, 415."""
    if request.content_type == "application/apply-patch+yaml":
        raise status.bad_request(
            "the lab serves no server-side apply: use kubectl apply without --server-side"
        )
    if request.content_type not in PATCHES:
        raise status.unsupported_media(PATCHES)
    return await _decoded(request)


async def read_json(request: web.Request) -> object:
    """Read a body as JSON. Raises ApiError (400)."""
    return await _decoded(request)


async def read_deletion(request: web.Request) -> Deletion:
    """Read DeleteOptions from body and query. Raises ApiError (400)."""
    body = await _decoded(request) if request.can_read_body else {}
    options = body if isinstance(body, dict) else {}
    grace = options.get("gracePeriodSeconds")
    if "gracePeriodSeconds" in request.query:
        grace = _number(request.query, "gracePeriodSeconds")
    if grace is not None and (not isinstance(grace, int) or grace < 0):
        raise status.bad_request(f"gracePeriodSeconds: {grace!r} is no number of seconds")
    wanted = options.get("preconditions") or {}
    policy = request.query.get("propagationPolicy") or options.get("propagationPolicy")
    orphan = policy == "Orphan" or options.get("orphanDependents") is True
    return Deletion(grace, orphan, wanted.get("uid") or "", wanted.get("resourceVersion") or "")


def checked_object(
    obj: Object, resource: Resource, query: Mapping[str, str], warnings: list[str]
) -> Object:
    """Check kind and fields of an object from outside, and give the form in which it is kept."""
    api_version, kind = obj.get("apiVersion"), obj.get("kind")
    if api_version and api_version != resource.api_version:
        raise status.bad_request(
            f"the API version in the data ({api_version}) does not match the expected API "
            f"version ({resource.api_version})"
        )
    if kind and kind != resource.kind:
        raise status.bad_request(
            f'{kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
            "converting is not possible"
        )
    unknown: list[str] = []
    known = schema.checked(obj, resource.model, resource.kind, unknown)
    complaints = [f'unknown field "{field}"' for field in unknown]
    validation = query.get("fieldValidation", "Warn")
    if complaints and validation == "Strict":
        raise status.bad_request(
            f'{resource.kind} in version "{resource.version}" cannot be handled as a '
            f"{resource.kind}: strict decoding error: {', '.join(complaints)}"
        )
    if validation == "Warn":
        warnings += complaints
    return events.to_core(known) if resource is resources.EVENTS else known


def _from_protobuf(raw: bytes) -> Object:
    try:
        obj = protobuf.decode(raw)
    except ValueError as error:
        raise status.bad_request(f"the body of the request is no protobuf: {error}") from error
    if obj is None:
        raise status.unsupported_media(_JSON)
    return obj


async def _decoded(request: web.Request) -> object:
    raw = await request.read()
    if not raw.strip():
        return {}
    try:
        decoded: object = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise status.bad_request(f"the body of the request is no JSON: {error}") from error
    return decoded


def _number(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "")
    if not text:
        return 0
    if not text.isascii() or not text.isdigit():
        raise status.bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax ({name})')
    return int(text)


def _bad_watch(where: Target, why: str) -> status.ApiError:
    return status.ApiError(
        422, "Invalid", f"ListOptions.meta.k8s.io \"\" is invalid: {why}",
        {"group": "meta.k8s.io", "kind": where.resource.plural},
    )  # fmt: skip
