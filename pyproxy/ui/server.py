"""The page's server: HTML over HTTP, for readers on this machine unless told otherwise.

It only ever answers GET, loads nothing from elsewhere, and lets nobody else's page read it: names
and labels are other people's texts, and what a node serves is not for everybody.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from pyproxy.config.settings import ListenAddress
from pyproxy.errors import PyproxyError, UsageError
from pyproxy.inspect.snapshot import AgentView
from pyproxy.inspect.threads import BoundedThreads
from pyproxy.model.address import Family, address_text, family_of
from pyproxy.ui import pages
from pyproxy.ui.history import Recorder, Timeline
from pyproxy.ui.search import Query
from pyproxy.ui.traffic import Traffic
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

_REQUEST_TIMEOUT = 10.0
_STOP_TIMEOUT = 1.0
_LOOKING = 20.0
"""Seconds after a look at the charts for which somebody counts as looking."""

_STATIC = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "uPlot.iife.min.js": "text/javascript; charset=utf-8",
    "uPlot.min.css": "text/css; charset=utf-8",
}

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Page:
    """Serves the page between `start` and `stop`.

    An address that cannot be had is a warning: what the agent is for goes on without the page.
    """

    def __init__(self, address: ListenAddress, witness: AgentView, *, counters: bool) -> None:
        self._address = address
        self._witness = witness
        self._counters = counters
        self._server: _Listener | None = None

    @property
    def port(self) -> int:
        """The port, also where the kernel chose it; 0 while nothing is served."""
        return self._server.server_address[1] if self._server else 0

    def start(self) -> None:
        """Listen and begin to answer."""
        try:
            self._server = _Listener(self._address, self._witness, counters=self._counters)
        except OSError as error:
            log.warning("the page cannot be served on %s: %s", self._address, error.strerror)
            return
        self._server.begin()
        log.info("the page is on http://%s/", self._address)

    def stop(self) -> None:
        """Close the port."""
        if self._server is not None:
            self._server.end()
            self._server = None


class _Listener(BoundedThreads, HTTPServer):
    clients = request_queue_size = 32

    def __init__(self, address: ListenAddress, witness: AgentView, *, counters: bool) -> None:
        if family_of(address.address) is Family.IPV6:
            self.address_family = socket.AF_INET6
        self.witness = witness
        self.timeline = Timeline()
        self.looked = float("-inf")
        self._traffic = Traffic() if counters else None
        self._recorder = Recorder(witness, self.timeline, time.time, self._gained, self._is_watched)
        super().__init__((address_text(address.address), address.port), _Handler)
        self._thread = Worker("page", self.serve_forever)

    def begin(self) -> None:
        self._recorder.start()
        self._thread.start()

    def end(self) -> None:
        self.shutdown()
        self._thread.end(_STOP_TIMEOUT)
        self._recorder.stop()
        self.server_close()
        if self._traffic is not None:
            self._traffic.close()

    def _gained(self) -> int | None:
        return self._traffic.gained() if self._traffic else None

    def _is_watched(self) -> bool:
        return time.monotonic() - self.looked < _LOOKING


class _Handler(BaseHTTPRequestHandler):
    server: _Listener
    timeout = _REQUEST_TIMEOUT

    def do_GET(self) -> None:
        """Answer one request."""
        if not is_ours(self.headers.get("Host", "")):
            self._html(HTTPStatus.FORBIDDEN, pages.trouble("ask for it by address or localhost"))
            return
        target = urlsplit(self.path)
        try:
            self._route(target.path, target.query)
        except (UsageError, msgspec.ValidationError, ValueError) as error:
            self._html(HTTPStatus.NOT_FOUND, pages.trouble(str(error)))
        except PyproxyError as error:
            self._html(HTTPStatus.SERVICE_UNAVAILABLE, pages.trouble(str(error)))
        except OSError:
            raise
        except Exception:
            log.exception("the page %s failed, which is a mistake in pyproxy", target.path)
            self._html(HTTPStatus.INTERNAL_SERVER_ERROR, pages.trouble("this is a mistake of ours"))

    def _route(self, path: str, query: str) -> None:
        first, _, rest = path.removeprefix("/").partition("/")
        match first:
            case "" if not rest:
                asked = msgspec.convert(dict(parse_qsl(query)), Query, strict=False)
                self._html(HTTPStatus.OK, pages.overview(self.server.witness.snapshot(), asked))
            case "services" if rest:
                name = unquote(rest)
                self._html(HTTPStatus.OK, pages.service(self.server.witness.snapshot(), name))
            case "history":
                self.server.looked = time.monotonic()
                moments = self.server.timeline.moments(time.time())
                self._reply(HTTPStatus.OK, msgspec.json.encode(moments), "application/json")
            case "changes":
                self._changes()
            case "static" if rest in _STATIC:
                body = (files("pyproxy.ui") / "static" / rest).read_bytes()
                self._reply(HTTPStatus.OK, body, _STATIC[rest])
            case _:
                raise UsageError(f"there is nothing at {path}")

    def _changes(self) -> None:
        """Tell of changes as server-sent events, until the reader leaves."""
        self._head(HTTPStatus.OK, "text/event-stream")
        with self.server.witness.follow() as changes:
            for line in _events(changes):
                self.wfile.write(line)

    def _html(self, status: HTTPStatus, text: str) -> None:
        self._reply(status, text.encode(), "text/html; charset=utf-8")

    def _reply(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self._head(status, kind, len(body))
        self.wfile.write(body)

    def _head(self, status: HTTPStatus, kind: str, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Leave the log to what matters."""
        log.debug(format, *args)


def is_ours(host: str) -> bool:
    """Tell whether a request's Host is an address, or localhost.

    A name of somebody else's may lead here only for their page to read this one.
    """
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _events(changes: Iterator[Any]) -> Iterator[bytes]:
    yield b"retry: 2000\n\n"
    for change in changes:
        # A comment now and then is how a reader who has left is noticed.
        yield b":\n\n" if change is None else f"data: {json.dumps(change.service)}\n\n".encode()
