"""The slowest changes of late, and where their time went: what `pyproxy status --slow` shows."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

CAPACITY = 20
"""Changes that are shown."""


class Phases(msgspec.Struct, frozen=True, gc=False):
    """The seconds of a change, phase by phase; they add up to the whole.

    `decode` ends when the decoded object is in the agent's inbox, `queue` when the agent's thread
    takes it. `wait` ends when the step begins that commits it, `plan` when that step is planned.
    `pack` and `kernel` are the commit: the agent's own part, and sending, in which the kernel
    applies the transaction. `listeners` ends when the commit's listeners are done.
    """

    decode: float
    queue: float
    wait: float
    plan: float
    pack: float
    kernel: float
    listeners: float

    def items(self) -> Iterator[tuple[str, float]]:
        """Yield each phase in order, with its seconds."""
        for name in self.__struct_fields__:
            yield name, getattr(self, name)


class Cause(msgspec.Struct, frozen=True, gc=False):
    """An event in the time of a change that may have delayed it, and its seconds.

    A cause may overlap others.
    """

    kind: str
    seconds: float


class SlowChange(msgspec.Struct, frozen=True, rename="camel"):
    """The oldest change of one commit.

    `kind`, `namespace` and `name` are those of the object. `ended` is in seconds since the epoch,
    `seconds` runs from reading the object to the end of the commit's listeners. `coalesced` is the
    number of other changes in the same commit.
    """

    kind: str
    namespace: str
    name: str
    ended: float
    seconds: float
    phases: Phases
    causes: tuple[Cause, ...]
    coalesced: int


class SlowChanges(msgspec.Struct, frozen=True):
    """The slowest changes since a time in seconds since the epoch, the slowest first."""

    since: float
    changes: tuple[SlowChange, ...]
