"""All exceptions of pyproxy, and `Problem`.

A wrong flag or file is a `UsageError`: one line that names the object, the field and the fix, and
exit status 2. An invalid object of the cluster is not an exception but a `Problem`, a value that is
passed along with the valid objects. An error of the kernel is a `KernelError`, made from the errno
beside the system call.
"""

from __future__ import annotations

import enum

import msgspec


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
    FRONTEND_CONFLICT = "FrontendConflict"
    REJECTED_BY_KERNEL = "RejectedByKernel"
    FAILED_TO_START_HEALTHCHECK = "FailedToStartServiceHealthcheck"

    @property
    def node_specific(self) -> bool:
        """Whether the Problem concerns this node only; all nodes read the same objects."""
        return self in (ProblemReason.REJECTED_BY_KERNEL, ProblemReason.FAILED_TO_START_HEALTHCHECK)


class Problem(msgspec.Struct, frozen=True):
    """An error in one object of the cluster: reported by an Event, a metric and one log line.

    `kind` and `name` identify the object ("Service", "shop/web") and `field` the field
    ("spec.externalIPs[1]"). `message` is the error and its consequence.
    """

    kind: str
    name: str
    field: str
    message: str
    reason: ProblemReason = ProblemReason.INVALID_OBJECT

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.field}: {self.message}"
