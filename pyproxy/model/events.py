"""What a source tells the agent.

A source sends each object as an `Upsert` as soon as it is read, and one `Synced` a kind when a
list is whole. `Synced` names everything that exists, so whatever the agent still holds besides is
gone: a list after a lost watch needs no other form, and nothing has to be held twice meanwhile.
"""

from __future__ import annotations

import msgspec

from pyproxy.errors import Problem
from pyproxy.model.objects import EndpointSlice, Kind, Node, ObjectName, Service


class Upsert(msgspec.Struct, frozen=True):
    """An object is new, or has changed; `read_at` is the monotonic time at which it was read."""

    obj: Service | EndpointSlice | Node
    read_at: float = 0.0


class Delete(msgspec.Struct, frozen=True):
    """An object is gone, or is no longer ours (it became headless, say); it may be unknown."""

    kind: Kind
    name: ObjectName
    read_at: float = 0.0


class Synced(msgspec.Struct, frozen=True):
    """A list is whole: what is not in `names` does not exist.

    `set_aside` are the names, as their Problems have them, of what exists and could not be read.
    """

    kind: Kind
    names: frozenset[ObjectName]
    invalid: frozenset[str] = frozenset()


class InvalidObject(msgspec.Struct, frozen=True):
    """An object that could not be read at all; a `Delete` for it has come just before."""

    problem: Problem


Event = Upsert | Delete | Synced | InvalidObject
