"""Read the bodies of responses up to a limit, whatever their encoding expands to."""

from __future__ import annotations

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

_READ_SIZE = 1 << 18


class TooLargeError(SourceError):
    """A response or a part of it is larger than its limit; it was not read to its end."""


def read_body(response: BaseHTTPResponse, limit: int) -> bytes:
    """Return the decoded body of a response.

    A compressed body is decompressed in steps, so that at most `limit` bytes are held. Blocks.
    Raises TooLargeError, and urllib3's HTTPError and OSError if the connection breaks.
    """
    length = response.headers.get("Content-Length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > limit:
        raise TooLargeError(f"a response of {length[:20]} bytes: the limit is {limit}")
    parts: list[bytes] = []
    size = 0
    while part := response.read(_READ_SIZE):
        size += len(part)
        if size > limit:
            raise TooLargeError(f"a response of more than {limit} bytes")
        parts.append(part)
    return b"".join(parts)
