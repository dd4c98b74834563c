"""Turn the objects of one kind, as lists and watches bring them, into events for the agent."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import msgspec

from pyproxy.errors import Problem
from pyproxy.model.events import Delete, Event, InvalidObject, Synced, Upsert
from pyproxy.model.objects import Kind, ObjectName
from pyproxy.source import wire
from pyproxy.source.decode import DecodedObject, NotProxied, decode_object, identify
from pyproxy.source.large_objects import LARGE, LargeObjects
from pyproxy.source.retry import Clock

log = logging.getLogger(__name__)


class Resource(msgspec.Struct, frozen=True):
    """The API path of one kind of object, and the selector of its lists and watches.

    With `only`, objects of any other name are ignored.
    """

    kind: Kind
    path: str
    list_kind: str
    selector: dict[str, str]
    only: ObjectName | None = None


class ObjectEvents:
    """Emits an event for each object of one kind.

    `advance` takes the version of each object that is upserted outside a list, before its event,
    and may raise. The argument `listing` collects the names of a list in progress, None outside it.
    Methods belong to one thread; `emit` is called from another one too, for large objects.
    """

    def __init__(
        self,
        resource: Resource,
        emit: Callable[[Event], None],
        advance: Callable[[str], None],
        clock: Clock,
        stopping: threading.Event,
    ) -> None:
        self._resource = resource
        self._emit = emit
        self._clock = clock
        self._advance = advance
        self._invalid: set[str] = set()
        # Until then the agent routes nothing, so that endpoints can wait until it does.
        self._is_complete = False
        self._large = LargeObjects(resource.kind, clock, stopping, self._emit_upsert)

    @property
    def invalid(self) -> int:
        """The number of undecodable objects in the list in progress."""
        return len(self._invalid)

    def begin_list(self) -> None:
        """Begin a list."""
        self._invalid.clear()

    def complete(self, names: set[ObjectName]) -> None:
        """Emit Synced at the end of a list."""
        self._is_complete = True
        # The list has all that exists, so a version that waits is older or gone.
        self._large.clear()
        self._emit(Synced(self._resource.kind, frozenset(names), frozenset(self._invalid)))

    def upsert(self, raw: wire.Encoded, read_at: float, listing: set[ObjectName] | None) -> None:
        """Emit the present state of one object, or hold a large one back that changes too often."""
        if listing is None and self._hold(raw, read_at):
            return
        decoded = decode_object(self._resource.kind, raw, deferring=not self._is_complete)
        # The versions of the objects in a list are in no order.
        if listing is None:
            self._advance(decoded.version)
        if decoded.name is not None:
            if not self._selects(decoded.name):
                return
            self._large.discard(decoded.name)
        self._emit_upsert(decoded, read_at, listing)

    def delete(self, raw: wire.Encoded, read_at: float, listing: set[ObjectName] | None) -> str:
        """Emit the deletion of an object, of which only the identity counts; return its version."""
        name: ObjectName | None
        if found := identify(self._resource.kind, raw):
            name, version = found
        else:
            decoded = decode_object(self._resource.kind, raw)
            name, version = decoded.name, decoded.version
            if decoded.name is None and isinstance(decoded.value, Problem):
                self._emit(InvalidObject(decoded.value))
        if name is not None and self._selects(name):
            self._large.discard(name)
            self._emit_delete(name, read_at, listing)
        return version

    def _hold(self, raw: wire.Encoded, read_at: float) -> bool:
        """Hold a large object back if it changes too often; else return False."""
        if wire.size(raw) < LARGE:
            return False
        found = identify(self._resource.kind, raw)
        if found is None or not self._selects(found[0]):
            return False
        name, version = found
        # First, because it raises for a version of another history, which must not be emitted.
        self._advance(version)
        return self._large.hold(name, raw, read_at)

    def _emit_upsert(
        self, decoded: DecodedObject, read_at: float, listing: set[ObjectName] | None = None
    ) -> None:
        """Emit the state of one object, which is a Delete if it is not proxied."""
        kind, name, value = self._resource.kind, decoded.name, decoded.value
        if isinstance(value, Problem):
            # The previous version no longer exists, so it must not stay programmed. The Node of a
            # running agent exists, and its last legible version is better than none.
            if kind is not Kind.NODE:
                self._emit_delete(name, read_at, listing)
            elif listing is not None and name is not None:
                listing.add(name)
            self._emit(InvalidObject(value))
            if listing is not None:
                self._invalid.add(value.name)
        elif isinstance(value, NotProxied):
            log.debug("%s %s is not proxied: %s", kind.value, name, value.reason)
            self._emit_delete(name, read_at, listing)
        else:
            self._emit(Upsert(value, read_at, self._clock.now()))
            if listing is not None and name is not None:
                listing.add(name)

    def _emit_delete(
        self, name: ObjectName | None, read_at: float, listing: set[ObjectName] | None
    ) -> None:
        if name is not None:
            self._emit(Delete(self._resource.kind, name, read_at, self._clock.now()))
            if listing is not None:
                listing.discard(name)

    def _selects(self, name: ObjectName) -> bool:
        return self._resource.only is None or name == self._resource.only
