"""The events that a source sends to the agent.

A source sends each object as an `Upsert` when it is read, and one `Synced` for each kind when a
list is complete. `Synced` names all objects that exist, and the agent deletes every other object of
that kind. So a list after a lost watch needs no separate event and no second copy of the objects.
"""

from __future__ import annotations

import msgspec

from pyproxy.errors import Problem
from pyproxy.model.objects import DeferredSlice, EndpointSlice, Kind, Node, ObjectName, Service


class Upsert(msgspec.Struct, frozen=True):
    """An object was added or changed.

    `read_at` is the monotonic time of reading it, `decoded_at` that of emitting it; 0 if the source
    does not time that.
    """

    obj: Service | EndpointSlice | DeferredSlice | Node
    read_at: float = 0.0
    decoded_at: float = 0.0


class Delete(msgspec.Struct, frozen=True):
    """An object was deleted, or is no longer proxied (e.g. headless); it may be unknown.

    `read_at` and `decoded_at` are as in `Upsert`.
    """

    kind: Kind
    name: ObjectName
    read_at: float = 0.0
    decoded_at: float = 0.0


class Synced(msgspec.Struct, frozen=True):
    """A list is complete: objects that are not in `names` do not exist.

    `invalid` are the names, as in their Problems, of objects that could not be decoded.
    """

    kind: Kind
    names: frozenset[ObjectName]
    invalid: frozenset[str] = frozenset()


class InvalidObject(msgspec.Struct, frozen=True):
    """An object could not be decoded.

    A `Delete` precedes this event, except for a Node: the last legible version of it stays in use.
    """

    problem: Problem


Event = Upsert | Delete | Synced | InvalidObject
