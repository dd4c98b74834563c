"""A part of the facts that was not read, and readers whose failure is such a part."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from pyproxy.errors import KernelError

T = TypeVar("T")


class NotRead(msgspec.Struct, frozen=True):
    """The reason why a part was not read, in words that follow "not checked:"."""

    reason: str


def read_part(read: Callable[[], T | NotRead]) -> T | NotRead:
    """Return what `read` returns, or why the kernel refused it."""
    try:
        return read()
    except KernelError as error:
        return NotRead(str(error))
    except OSError as error:
        return NotRead(f"{error.filename}: {error.strerror}" if error.filename else str(error))
