"""Requests and responses of the small HTTP server, and their text on the wire."""

from __future__ import annotations

import http
import logging
from collections.abc import Callable

import msgspec

from pyproxy.model.address import Family

log = logging.getLogger(__name__)

HEAD_END = b"\r\n\r\n"


class Request(msgspec.Struct, frozen=True):
    """The path of a request, and the family of the node's address that it was sent to."""

    path: str
    family: Family = Family.IPV4


class Response(msgspec.Struct, frozen=True):
    """A response; the server adds Content-Length and Connection."""

    body: bytes
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


Slow = Callable[[], Response]
"""Makes a response in a thread for slow ones, which runs one at a time. It may block."""

Handler = Callable[[Request], Response | Slow]
"""Returns the response to a request. It runs in the server's thread, so it must not block."""


class Outgoing(msgspec.Struct, frozen=True):
    """A response on the wire. The body is the handler's own, so that many clients share it."""

    head: bytes
    body: bytes


_FAILED = Response(b"500 Internal Server Error", 500)


def respond(handler: Handler, head: bytes, family: Family) -> Response | Slow:
    """Return the response to the head of a request; HTTP/1 only."""
    _, target, version = _request_line(head)
    if not version.startswith("HTTP/1."):
        return Response(b"400 Bad Request", 400)
    path = target.partition("?")[0]
    try:
        return handler(Request(path, family))
    except Exception:
        # A bug in a handler must not look like a dead agent to a load balancer.
        log.exception("the handler of %s failed", path)
        return _FAILED


def finish(slow: Slow) -> Response:
    """Make a slow response; status 500 if that raises an exception."""
    try:
        return slow()
    except Exception:
        log.exception("a slow response failed")
        return _FAILED


def pack(response: Response, head: bytes) -> Outgoing:
    """Pack a response to the head of a request; one to HEAD has no body."""
    lines = (
        f"HTTP/1.1 {response.status} {http.HTTPStatus(response.status).phrase}",
        f"Content-Type: {response.content_type}",
        *(f"{name}: {value}" for name, value in response.headers),
        f"Content-Length: {len(response.body)}",
        "Connection: close",
        "",
        "",
    )
    body = b"" if _request_line(head)[0] == "HEAD" else response.body
    return Outgoing("\r\n".join(lines).encode("latin-1"), body)


def _request_line(head: bytes) -> tuple[str, str, str]:
    method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
    target, _, version = rest.partition(" ")
    return method, target, version
