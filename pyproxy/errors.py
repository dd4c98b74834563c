"""All exceptions of pyproxy, and `Problem`.

A wrong flag or file is a `UsageError`: one line that names the object, the field and the fix, and
exit status 2. An invalid object of the cluster is not an exception but a `Problem`, a value that is
passed along with the valid objects. An error of the kernel is a `KernelError`, made from the errno
beside the system call.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec

NO_RESPONSE = 3
"""The exit status of a command if agent, API server or kernel failed; 0 and 1 are its results."""

NAMED_PROBLEMS = 5
"""Problems of one object, found by one step, that are kept; the others are counted in a summary."""

# A namespace and a name have 317 characters at most; the API server allows 1,024 bytes in an Event.
_NAME_LIMIT = 320
_FIELD_LIMIT = 160
_MESSAGE_LIMIT = 640
_SUMMARY_LIMIT = 960


class PyproxyError(Exception):
    """The base of all exceptions that pyproxy raises."""


class UsageError(PyproxyError):
    """A wrong flag, file or permission; the text is the whole message to the user."""


class SourceError(PyproxyError):
    """An unexpected response of the API server; the request can be repeated."""


class KernelError(PyproxyError):
    """The kernel returned `errno`; the cause is chained."""

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


class TransientKernelError(KernelError):
    """The same request may succeed later: EINTR, EAGAIN, ENOBUFS, EBUSY, ENOMEM."""


class StaleStateError(KernelError):
    """The kernel state is not the expected one (ENOENT, EEXIST): read it back and plan again."""


class RejectedError(KernelError):
    """The kernel will always reject this message: EINVAL, ERANGE, E2BIG and the like."""


class PermissionKernelError(KernelError):
    """CAP_NET_ADMIN is missing: EPERM, EACCES."""


class ProblemReason(enum.Enum):
    """The kind of a Problem; the values are the reasons of Kubernetes Events."""

    INVALID_OBJECT = "InvalidObject"
    """the object or a part of it cannot be used; of a Node, that another program keeps undoing the
    changes of pyproxy there"""
    FRONTEND_CONFLICT = "FrontendConflict"
    """another Service or the agent has the address and port"""
    REJECTED_BY_KERNEL = "RejectedByKernel"
    """the kernel rejected the Service; its previous state stays programmed"""
    FAILED_TO_START_HEALTHCHECK = "FailedToStartServiceHealthcheck"
    """the agent cannot listen on `spec.healthCheckNodePort`, or must not"""
    SESSION_AFFINITY_FULL = "SessionAffinityFull"
    """the clients of the Service use up the node's share of session affinity for one Service"""

    @property
    def node_specific(self) -> bool:
        """Whether the Problem concerns this node only; all nodes read the same objects."""
        return self in (
            ProblemReason.REJECTED_BY_KERNEL,
            ProblemReason.FAILED_TO_START_HEALTHCHECK,
            ProblemReason.SESSION_AFFINITY_FULL,
        )


def one_line(text: str, limit: int) -> str:
    """Return at most `limit` characters of a text, all printable.

    Any character that could end a line, move a terminal's cursor or reorder text is replaced by its
    escape in Python's notation, and so are surrogates, which UTF-8 cannot encode.
    """
    if len(text) > limit:
        text = f"{text[: limit - 1]}…"
    if text.isprintable():
        return text
    escaped = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
    return escaped if len(escaped) <= limit else f"{escaped[: limit - 1]}…"


class Problem(msgspec.Struct, frozen=True):
    """An error in one object of the cluster: reported by an Event, a metric and one log line.

    `kind` and `name` identify the object ("Service", "shop/web") and `field` the field
    ("spec.externalIPs[1]"). `message` is the error and its consequence. Tenants write parts of all
    of these, so each is made printable and shortened.
    """

    kind: str
    name: str
    field: str
    message: str
    reason: ProblemReason = ProblemReason.INVALID_OBJECT

    def __post_init__(self) -> None:
        for part, limit in (
            ("name", _NAME_LIMIT),
            ("field", _FIELD_LIMIT),
            ("message", _MESSAGE_LIMIT),
        ):
            text = getattr(self, part)
            if len(text) > limit or not text.isprintable():
                msgspec.structs.force_setattr(self, part, one_line(text, limit))

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.field}: {self.message}"


class ProblemList:
    """The problems of one object: the first ones, and the number of all others."""

    def __init__(self, problems: Iterable[Problem] = ()) -> None:
        self._named: list[Problem] = []
        self._unnamed: Problem | None = None
        self._count = 0
        for problem in problems:
            self.add(problem)

    def add(self, problem: Problem) -> None:
        """Add a problem."""
        self._count += 1
        if len(self._named) < NAMED_PROBLEMS:
            self._named.append(problem)
        elif self._unnamed is None:
            self._unnamed = problem

    @property
    def has_room(self) -> bool:
        """Whether the next problem is kept, and not only counted."""
        return self._unnamed is None

    def count(self) -> None:
        """Add a problem that is not kept; only without `has_room`."""
        self._count += 1

    def all(self) -> tuple[Problem, ...]:
        """Return the problems in the order in which they were added, with at most one summary."""
        first = self._unnamed
        if first is None:
            return tuple(self._named)
        number = self._count - len(self._named)
        if number == 1:
            return (*self._named, first)
        field = first.field.partition("[")[0]
        message = f"{number:,} more problems like these"
        summary = msgspec.structs.replace(first, field=field, message=message)
        return (*self._named, summary)


def merged(problems: Iterable[Problem]) -> Problem:
    """Return one Problem about an object in place of several; raises ValueError if there is none.

    An object with many invalid fields costs one log line and one Event in this way.
    """
    first, *others = problems
    if not others:
        return first
    more = " | ".join(f"{problem.field}: {problem.message}" for problem in others)
    result = msgspec.structs.replace(first, message="")
    message = one_line(f"{first.message} | {more}", _SUMMARY_LIMIT)
    msgspec.structs.force_setattr(result, "message", message)
    return result
