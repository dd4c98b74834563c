"""In which form objects are sent: as they are kept, in protobuf, as events, as a table."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import msgspec

from pyproxy_lab.apiserver import protobuf, tables
from pyproxy_lab.apiserver.kinds.events import to_events
from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.protobuf_fields import SENT
from pyproxy_lab.apiserver.resources import EVENTS, Resource
from pyproxy_lab.apiserver.store import Change, EventType, Stored, encode, reversioned

_LIST_BATCH = 256
JSON_TYPE = "application/json"

# The fields of a bookmark beside its version: Go always encodes these of an empty object.
_BOOKMARK_EXTRAS: dict[str, Object] = {
    "Namespace": {"spec": {}, "status": {}},
    "Node": {"spec": {}, "status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 0}}}},
    "Service": {"spec": {}, "status": {"loadBalancer": {}}},
    "Pod": {"spec": {"containers": None}, "status": {}},
    "EndpointSlice": {"addressType": "", "endpoints": None, "ports": None},
    "Event": {"eventTime": None, "reportingInstance": ""},
}


class Rendering:
    """Objects as they are kept: their bytes are sent untouched."""

    media_type = JSON_TYPE
    stream_type = JSON_TYPE

    def __init__(self, resource: Resource, key: str = "native") -> None:
        self.resource = resource
        self.key = key
        self._start = f'{{"kind":"{resource.kind}","apiVersion":"{resource.api_version}",'.encode()

    def body(self, stored: Stored) -> bytes:
        """Return one object."""
        return stored.body

    def listing(self, objects: list[Stored], meta: Object) -> Iterator[bytes]:
        """Return a list, in pieces; `meta` is the list's own metadata."""
        head = {
            "kind": f"{self.resource.kind}List",
            "apiVersion": self.resource.api_version,
            "metadata": meta,
        }
        yield encode(head)[:-1] + b',"items":['
        for first in range(0, len(objects), _LIST_BATCH):
            batch = objects[first : first + _LIST_BATCH]
            yield (b"," if first else b"") + b",".join(map(self._item, batch))
        yield b"]}\n"

    def has_line(self, change: Change, event: EventType) -> bool:
        """Return whether a watch has encoded this change."""
        return (self.key, event) in change.lines

    def line(self, change: Change, event: EventType) -> bytes:
        """Return a change as a line of a watch; encoded once for all watchers."""
        key = (self.key, event)
        if (line := change.lines.get(key)) is None:
            line = change.lines[key] = self.event(event, self._shown(change, event))
        return line

    def event(self, event: EventType, stored: Stored) -> bytes:
        """Return an object as a line of a watch."""
        return b'{"type":"%s","object":%s}\n' % (event.encode(), self.body(stored))

    def error(self, status: Object) -> bytes:
        """Return a Status as a line of a watch."""
        return b'{"type":"ERROR","object":%s}\n' % encode(status)

    def bookmark(self, revision: int, initial_events_end: bool = False) -> bytes:
        """Return a line that says up to which version a watch has got."""
        meta = _bookmark_meta(revision, initial_events_end)
        shown = {
            "kind": self.resource.kind,
            "apiVersion": self.resource.api_version,
            "metadata": meta,
            **_BOOKMARK_EXTRAS.get(self.resource.kind, {}),
        }
        return b'{"type":"BOOKMARK","object":%s}\n' % encode(shown)

    def _item(self, stored: Stored) -> bytes:
        """Return an element of a list, which shows neither kind nor apiVersion."""
        return b"{" + self.body(stored)[len(self._start) :]

    def _shown(self, change: Change, event: EventType) -> Stored:
        if event is EventType.DELETED and not change.gone and change.old is not None:
            # It left the selection, but exists: a watch shows what it last knew, at this version.
            body = reversioned(change.old, change.revision)
            return msgspec.structs.replace(change.old, body=body, encoded={})
        return change.new


class ProtobufRendering(Rendering):
    """Objects in protobuf, each encoded once."""

    media_type = protobuf.MEDIA_TYPE
    stream_type = protobuf.STREAM_TYPE

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource, key=protobuf.MEDIA_TYPE)

    def body(self, stored: Stored) -> bytes:
        """Return one object."""
        return self._envelope(self._item(stored))

    def listing(self, objects: list[Stored], meta: Object) -> Iterator[bytes]:
        """Return a list, in pieces."""
        kind = f"{self.resource.kind}List"
        items = [self._item(stored) for stored in objects]
        pieces = protobuf.listing(self.resource.api_version, kind, meta, items)
        while batch := b"".join(itertools.islice(pieces, 2 * _LIST_BATCH)):
            yield batch

    def event(self, event: EventType, stored: Stored) -> bytes:
        """Return an object as an event of a watch."""
        return protobuf.event(event, self.body(stored))

    def error(self, status: Object) -> bytes:
        """Return a Status as an event of a watch."""
        return protobuf.event("ERROR", _protobuf_status(status))

    def bookmark(self, revision: int, initial_events_end: bool = False) -> bytes:
        """Return an event that says up to which version a watch has got."""
        meta = _bookmark_meta(revision, initial_events_end)
        raw = protobuf.encode(self.resource.kind, {"metadata": meta})
        return protobuf.event("BOOKMARK", self._envelope(raw))

    def _item(self, stored: Stored) -> bytes:
        if (raw := stored.encoded.get(self.key)) is None:
            raw = protobuf.encode(self.resource.kind, stored.decode())
            stored.encoded[self.key] = raw
        return raw

    def _envelope(self, raw: bytes) -> bytes:
        return protobuf.envelope(self.resource.api_version, self.resource.kind, raw)


class ConvertedRendering(Rendering):
    """Objects in another form than they are kept in."""

    def __init__(self, resource: Resource, convert: Callable[[Object], Object]) -> None:
        super().__init__(resource, key=resource.api_version)
        self._convert = convert

    def body(self, stored: Stored) -> bytes:
        """Return one object, converted."""
        return encode(self._convert(stored.decode()))


class TableRendering(Rendering):
    """Rows with the columns that `kubectl get` prints.

    `include` says what of each object comes along: None, Metadata or Object.
    """

    def __init__(self, resource: Resource, include: str) -> None:
        super().__init__(resource, key=f"table {include}")
        self._include = include

    def body(self, stored: Stored) -> bytes:
        """Return a table of one row."""
        meta = {"resourceVersion": str(stored.revision)}
        return encode(tables.table(self.resource, [stored.decode()], meta, self._include))

    def listing(self, objects: list[Stored], meta: Object) -> Iterator[bytes]:
        """Return a table of all objects."""
        decoded = [stored.decode() for stored in objects]
        yield encode(tables.table(self.resource, decoded, meta, self._include))

    def bookmark(self, revision: int, initial_events_end: bool = False) -> bytes:
        """Return a table without rows."""
        del initial_events_end
        meta = {"resourceVersion": str(revision)}
        empty = tables.table(self.resource, [], meta, self._include)
        return b'{"type":"BOOKMARK","object":%s}\n' % encode(empty)


def rendering(
    resource: Resource, accept: str, include: str, *, has_protobuf: bool = True
) -> Rendering:
    """Choose a form by the Accept header; `include` is the query's includeObject."""
    if has_protobuf and _wants_protobuf(accept) and resource.kind in SENT:
        return ProtobufRendering(resource)
    for choice in accept.split(","):
        parts = {part.strip() for part in choice.split(";")}
        if "application/json" in parts and "as=Table" in parts and "v=v1" in parts:
            return TableRendering(resource, include or "Metadata")
        if parts & {"application/json", "application/*", "*/*"} and "as=Table" not in parts:
            break
    if resource is EVENTS:
        return ConvertedRendering(resource, to_events)
    return Rendering(resource)


def status_body(status: Object, accept: str) -> tuple[bytes, str]:
    """Return a Status as the body of a response, and its media type."""
    if _wants_protobuf(accept):
        return _protobuf_status(status), protobuf.MEDIA_TYPE
    return encode(status), JSON_TYPE


def _wants_protobuf(accept: str) -> bool:
    """Return whether protobuf is the first of the types that the server has."""
    types = (choice.partition(";")[0].strip() for choice in accept.split(","))
    known = {protobuf.MEDIA_TYPE, JSON_TYPE, "application/*", "*/*"}
    return next((each for each in types if each in known), "") == protobuf.MEDIA_TYPE


def _protobuf_status(status: Object) -> bytes:
    return protobuf.envelope("v1", "Status", protobuf.encode("Status", status))


def _bookmark_meta(revision: int, initial_events_end: bool) -> Object:
    meta: Object = {"resourceVersion": str(revision)}
    if initial_events_end:
        meta["annotations"] = {"k8s.io/initial-events-end": "true"}
    return meta
