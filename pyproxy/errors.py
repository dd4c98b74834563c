"""The one family of errors.

What a person did wrong is a `UsageError`: one line that names the object, the field and the fix,
and exit status 2. What the cluster said wrong is no exception at all but a `Problem`, a value that
travels beside the good objects. What the kernel refused is a `KernelError`, whose errno has been
translated where the system call was made.
"""

from __future__ import annotations

import enum

import msgspec


class PyproxyError(Exception):
    """The root of everything that pyproxy raises on purpose."""


class UsageError(PyproxyError):
    """A flag, a file or a right that a person must put right; its text is the whole message."""


class SourceError(PyproxyError):
    """The API server, or a folder of manifests, did not answer as it must; worth another try."""


class KernelError(PyproxyError):
    """The kernel refused; `errno` is its number, and the cause is chained."""

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


class TransientKernelError(KernelError):
    """The same request may succeed if sent again: EINTR, EAGAIN, ENOBUFS, EBUSY, ENOMEM."""


class StaleStateError(KernelError):
    """The kernel does not hold what we thought (ENOENT, EEXIST): read back, then diff again."""


class RejectedError(KernelError):
    """The kernel will never take this message: EINVAL, ERANGE, E2BIG and their like."""


class PermissionKernelError(KernelError):
    """CAP_NET_ADMIN is missing: EPERM, EACCES."""


class ProblemReason(enum.Enum):
    """What kind of thing is wrong; the values are the reasons of Events."""

    INVALID_OBJECT = "InvalidObject"
    FRONTEND_CONFLICT = "FrontendConflict"
    REJECTED_BY_KERNEL = "RejectedByKernel"
    FAILED_TO_START_HEALTHCHECK = "FailedToStartServiceHealthcheck"

    @property
    def node_specific(self) -> bool:
        """Whether other nodes may well be without it: all nodes read the same objects."""
        return self in (ProblemReason.REJECTED_BY_KERNEL, ProblemReason.FAILED_TO_START_HEALTHCHECK)


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with one object of the cluster, for an Event, a metric and one log line.

    `kind` and `name` say which object ("Service", "shop/web"), `field` where in it
    ("spec.externalIPs[1]"), and `message` what is wrong and what becomes of it.
    """

    kind: str
    name: str
    field: str
    message: str
    reason: ProblemReason = ProblemReason.INVALID_OBJECT

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.field}: {self.message}"
