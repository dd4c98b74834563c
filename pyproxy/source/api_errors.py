"""Errors of requests to an API server, as one line without credentials."""

from __future__ import annotations

from contextlib import suppress

import msgspec
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import ConnectTimeoutError, HTTPError, ProxyError

from pyproxy.errors import SourceError, one_line
from pyproxy.redaction import KNOWN
from pyproxy.source import wire
from pyproxy.source.body import LARGEST_STATUS
from pyproxy.source.media_types import is_protobuf

_LONGEST_TEXT = 300
# The body of Go's response to a request without TLS on a TLS port.
_PLAIN_ON_TLS = b"HTTP request to an HTTPS server"
_STATUS = msgspec.json.Decoder(wire.Status)


class UnreachableError(SourceError):
    """No response: no connection, or the connection broke or fell silent."""


class ApiStatusError(SourceError):
    """The server responded with an HTTP error.

    `status` is the HTTP status, `retry_after` the seconds of the header Retry-After, or 0.
    `from_api` is whether the body is a Status object, `is_page` whether it is HTML, and `needs_tls`
    whether a TLS port got the request without TLS.
    """

    def __init__(
        self,
        message: str,
        status: int,
        retry_after: float = 0.0,
        *,
        from_api: bool = True,
        is_page: bool = False,
        needs_tls: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.from_api = from_api
        self.is_page = is_page
        self.needs_tls = needs_tls


def reason(error: Exception) -> str:
    """Return the message without the connection object that urllib3 puts before it."""
    cause = error.original_error if isinstance(error, ProxyError) else error
    # A timeout has connection and message as two arguments, which Python writes as a tuple.
    text = str(cause.args[-1] if isinstance(cause, ConnectTimeoutError) and cause.args else cause)
    return _one_line(text.partition("): ")[2] or text)


def _one_line(text: str) -> str:
    """Return a text of a peer for a log line: short, printable and without our credentials."""
    return one_line(" ".join(KNOWN.redact(text[:LARGEST_STATUS]).split()), _LONGEST_TEXT)


def _decoded(body: bytes, content_type: str) -> wire.Status:
    """Decode a Status object. Raises the errors of msgspec."""
    if is_protobuf(content_type):
        # An agent that reads JSON never needs this module.
        from pyproxy.source import protobuf_objects  # noqa: PLC0415

        return protobuf_objects.status(body)
    return _STATUS.decode(body)


def status_error(method: str, target: str, response: BaseHTTPResponse) -> ApiStatusError:
    """Make an exception with one line of text from an error response."""
    text = _one_line(response.reason or "")
    body, from_api = b"", False
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError, HTTPError, OSError):
        body = response.read(LARGEST_STATUS)
        # An HTTP proxy on the way sends no Status object; then the HTTP status is all there is.
        status = _decoded(body, response.headers.get("Content-Type", ""))
        from_api = status.kind == "Status"
        text = _one_line(status.message or "") or text
    needs_tls = _PLAIN_ON_TLS in body
    text = "an HTTP request to an HTTPS server" if needs_tls else text
    retry_after = response.headers.get("Retry-After", "")
    return ApiStatusError(
        f"{method} {target.partition('?')[0]}: {response.status} {text}",
        response.status,
        float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0,
        from_api=from_api,
        is_page="html" in response.headers.get("Content-Type", ""),
        needs_tls=needs_tls,
    )
