"""Objects in versions: what exists, recent changes, and the watches that receive them.

One number, the revision, counts all changes of all tables, as it does in etcd. Each object is
encoded once, when it is written; lists and watches send those bytes. All of it belongs to one
event loop's thread and takes no locks.
"""

from __future__ import annotations

import bisect
import enum
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from pyproxy_lab.apiserver import status
from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.resources import STORED, Resource

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict).decode
_NOTHING: Mapping[str, str] = {}


class EventType(enum.StrEnum):
    """The type of a watch event."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


class Stored(msgspec.Struct, frozen=True, gc=False):
    """One version of one object.

    `body` is its JSON, kind and apiVersion first; `path` orders objects as a list does. `fields`
    are the values that a field selector can ask for, beyond metadata's. `encoded` caches the
    object's bytes by rendering.
    """

    path: str
    namespace: str
    name: str
    uid: str
    revision: int
    labels: Mapping[str, str]
    fields: Mapping[str, str]
    body: bytes
    encoded: dict[str, bytes] = msgspec.field(default_factory=dict)

    def decode(self) -> Object:
        """Decode the object anew; the caller may change what it gets."""
        return _decode(self.body)


class Change(msgspec.Struct, frozen=True):
    """One write: `old` is None for a creation, `gone` is true for a deletion.

    `lines` caches the encoded event by rendering and event type, so that all watches share one
    encoding.
    """

    revision: int
    old: Stored | None
    new: Stored
    gone: bool
    lines: dict[tuple[str, EventType], bytes]


Subscriber = Callable[[Change], None]


class Table:
    """The objects of one kind, and the changes since a while ago.

    `watchable_from` is the oldest revision that a watch can start from, `listable_from` the
    oldest that can still be listed as it was. A real server's watch cache forgets sooner than its
    etcd does, so there are two.
    """

    def __init__(self, resource: Resource, history: int) -> None:
        self.resource = resource
        self.watchable_from = 0
        self.listable_from = 0
        self.subscribers: list[Subscriber] = []
        self._objects: dict[str, Stored] = {}
        self._paths: list[str] = []
        self._changes: deque[Change] = deque()
        self._history = history

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, path: str) -> Stored | None:
        """Find the object at a path."""
        return self._objects.get(path)

    def paths(self, prefix: str) -> list[str]:
        """List, in order, the paths that begin with a prefix."""
        first = bisect.bisect_left(self._paths, prefix)
        last = bisect.bisect_left(self._paths, prefix + "\U0010ffff", lo=first)
        return self._paths[first:last]

    def current(self, prefix: str) -> list[Stored]:
        """List what exists below a prefix."""
        return [self._objects[path] for path in self.paths(prefix)]

    def as_of(self, prefix: str, revision: int) -> list[Stored]:
        """List what existed at a revision, by undoing what came after.

        The revision must not be older than `listable_from`.
        """
        undone: dict[str, Stored | None] = {
            change.new.path: change.old
            for change in self._newest_first(revision)
            if change.new.path.startswith(prefix)
        }
        if not undone:
            return self.current(prefix)
        paths = sorted({*self.paths(prefix), *undone})
        found = (undone[path] if path in undone else self._objects[path] for path in paths)
        return [stored for stored in found if stored is not None]

    def since(self, revision: int) -> list[Change]:
        """List the changes after a revision, oldest first."""
        changes = list(self._newest_first(revision))
        changes.reverse()
        return changes

    def apply(self, change: Change) -> None:
        """Take in a change and tell all subscribers."""
        path = change.new.path
        if change.gone:
            del self._objects[path]
            del self._paths[bisect.bisect_left(self._paths, path)]
        else:
            if change.old is None:
                bisect.insort(self._paths, path)
            self._objects[path] = change.new
        self._changes.append(change)
        self.trim(self._history)
        for subscriber in tuple(self.subscribers):
            subscriber(change)
        # A watch that starts from an earlier version later on encodes it again.
        change.lines.clear()

    def trim(self, keep: int) -> None:
        """Forget all but the newest changes; watches and lists cannot go back beyond them."""
        while len(self._changes) > keep:
            forgotten = self._changes.popleft()
            self.watchable_from = self.listable_from = forgotten.revision

    def _newest_first(self, revision: int) -> Iterator[Change]:
        for change in reversed(self._changes):
            if change.revision <= revision:
                return
            yield change


class Store:
    """All tables, and the revision that they share."""

    def __init__(self, history: int) -> None:
        # A new etcd's first revision is 1, and holds nothing.
        self.revision = 1
        self._tables = {name: Table(resource, history) for name, resource in STORED.items()}

    def table(self, resource: Resource) -> Table:
        """Return the table in which a resource's objects are kept."""
        return self._tables[resource.table]

    def tables(self) -> Iterable[Table]:
        """Return all tables."""
        return self._tables.values()

    def write(
        self, resource: Resource, obj: Object, fields: Mapping[str, str] = _NOTHING
    ) -> Stored:
        """Keep an object's new version, and set its metadata.resourceVersion."""
        table = self.table(resource)
        self.revision += 1
        new = _stored(table.resource, obj, self.revision, fields)
        old = table.get(new.path)
        table.apply(Change(self.revision, old, new, gone=False, lines={}))
        return new

    def remove(self, resource: Resource, old: Stored, final: Object) -> Stored:
        """Take an object away; `final` is what its last event shows. Returns that version."""
        table = self.table(resource)
        self.revision += 1
        new = _stored(table.resource, final, self.revision, old.fields)
        table.apply(Change(self.revision, old, new, gone=True, lines={}))
        return new

    def check_listable(self, table: Table, revision: int) -> None:
        """Refuse a list of a revision that is no longer known, or not yet."""
        if revision > self.revision:
            raise status.too_large_version(revision, self.revision)
        if revision < table.listable_from:
            raise status.expired(
                f"The resourceVersion for the provided list is too old: {revision} "
                f"({table.listable_from})"
            )

    def check_watchable(self, table: Table, revision: int) -> None:
        """Refuse a watch from a revision that is no longer known, or not yet."""
        if revision > self.revision:
            raise status.too_large_version(revision, self.revision)
        if revision < table.watchable_from:
            raise status.expired(f"too old resource version: {revision} ({table.watchable_from})")


def object_path(namespace: str, name: str) -> str:
    """Return the path that orders an object among its kind."""
    return f"/{namespace}/{name}" if namespace else f"/{name}"


def encode(obj: Object) -> bytes:
    """Encode an object as JSON."""
    return _encode(obj)


def reversioned(stored: Stored, revision: int) -> bytes:
    """Encode an old version of an object under a newer resourceVersion."""
    obj = stored.decode()
    obj["metadata"]["resourceVersion"] = str(revision)
    return _encode(obj)


def _stored(resource: Resource, obj: Object, revision: int, fields: Mapping[str, str]) -> Stored:
    meta = obj["metadata"]
    meta["resourceVersion"] = str(revision)
    namespace, name = meta.get("namespace", ""), meta["name"]
    content = {key: obj[key] for key in obj if key not in {"kind", "apiVersion"}}
    return Stored(
        path=object_path(namespace, name),
        namespace=namespace,
        name=name,
        uid=meta.get("uid", ""),
        revision=revision,
        labels=meta.get("labels") or _NOTHING,
        fields=fields,
        body=_encode({"kind": resource.kind, "apiVersion": resource.api_version, **content}),
    )
