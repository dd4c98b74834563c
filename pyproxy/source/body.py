"""Read the bodies of responses up to a limit, whatever their encoding expands to."""

from __future__ import annotations

import time
from collections.abc import Callable

from urllib3 import BaseHTTPResponse

from pyproxy.errors import SourceError

LARGEST_PAGE = 64 << 20
"""Bytes of a list's page. A larger page is requested again with fewer objects.

A page of 500 objects has 64 MiB if they have 134 KB on average; an EndpointSlice of 100 endpoints
has 30 KB. A page of one object always fits, because etcd stores 1.5 MiB at most.
"""

LARGEST_FRAME = 16 << 20
"""Bytes of one event of a watch; ten times the largest object that etcd stores."""

LARGEST_STATUS = 8 << 10
"""Bytes of an error response that are read."""

LARGEST_ANSWER = 1 << 20
"""Bytes of the response to a POST."""

GRACE = 60.0
"""Seconds that a body may take, however small it is."""

SLOWEST = 4 << 10
"""Bytes a second that it must have beyond them; a page of 500 Services has about 1 MB."""

_READ_SIZE = 1 << 18


class TooLargeError(SourceError):
    """A response or a part of it is larger than its limit; it was not read to its end."""


class TooSlowError(SourceError):
    """A body arrives a few bytes at a time, so that the socket's timeout never ends it."""


class Progress:
    """The bytes of a body that must have an end, such as a list. Times are in seconds."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._size = 0
        self._is_complete = False

    def complete(self) -> None:
        """Note the end: later bytes may take any time."""
        self._is_complete = True

    def received(self, size: int, now: float) -> None:
        """Add bytes. Raises TooSlowError."""
        self._size += size
        taken = now - self._began
        if not self._is_complete and taken > GRACE + self._size / SLOWEST:
            raise TooSlowError(f"{self._size} bytes of a list within {taken:.0f} s")


def read_body(
    response: BaseHTTPResponse, limit: int, now: Callable[[], float] = time.monotonic
) -> bytes:
    """Return the decoded body of a response.

    A compressed body is decompressed in steps, so that at most `limit` bytes are held. Blocks.
    Raises TooLargeError, TooSlowError, and urllib3's HTTPError and OSError if the connection
    breaks.
    """
    progress = Progress(now())
    length = response.headers.get("Content-Length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > limit:
        raise TooLargeError(f"a response of {length[:20]} bytes: the limit is {limit}")
    parts: list[bytes] = []
    size = 0
    # read1 returns the bytes that have arrived; read would wait for all of _READ_SIZE.
    while part := response.read1(_READ_SIZE):
        progress.received(len(part), now())
        size += len(part)
        if size > limit:
            raise TooLargeError(f"a response of more than {limit} bytes")
        parts.append(part)
    return b"".join(parts)
