"""The HTTP server of the page, on a loopback address by default.

It serves GET requests only and loads nothing from other hosts. Pages of other origins cannot read
it, because what a node serves is confidential.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from http import HTTPStatus
from importlib.resources import files
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from pyproxy.config.settings import ListenAddress
from pyproxy.dataplane.connections import ConnectionCounters
from pyproxy.errors import UsageError
from pyproxy.inspect.http_server import BoundedThreads, RequestHandler, peer_of
from pyproxy.inspect.retried_listening import listen_later
from pyproxy.inspect.snapshot import AgentView, Snapshot
from pyproxy.inspect.turns import Turns
from pyproxy.model.address import Family, address_text, family_of
from pyproxy.ui import pages
from pyproxy.ui.recent_pages import REFRESH_SECONDS, RecentPages
from pyproxy.ui.search import SearchQuery
from pyproxy.ui.timeline import ConnectionCounter, Recorder, Timeline
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

_STOP_TIMEOUT = 1.0
_VIEWER_TIMEOUT = 20.0
"""Seconds after the last request for the charts; the page asks every 2 s."""

_HTML = "text/html; charset=utf-8"
_STATIC = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "uPlot.iife.min.js": "text/javascript; charset=utf-8",
    "uPlot.min.css": "text/css; charset=utf-8",
}

# No inline scripts or styles, nothing from other hosts, no frames; no copy in the browser's cache.
_SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

OpenCounters = Callable[[], ConnectionCounters]
"""Opens the counters of the mode that serves."""


class PageServer:
    """Serves the page between `start` and `stop`.

    Readers compute in `turns` with all other askers. `counters` opens the connection counters, None
    if nothing is counted. An address that cannot be bound is a warning: the agent proxies without
    the page, and tries again every second.
    """

    def __init__(
        self,
        address: ListenAddress,
        agent: AgentView,
        turns: Turns,
        counters: OpenCounters | None = None,
    ) -> None:
        self._address = address
        self._agent = agent
        self._turns = turns
        self._counters = counters
        self._server: _Listener | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._retry: Worker | None = None

    @property
    def port(self) -> int:
        """The port, also if the kernel chose it; 0 while nothing is served."""
        server = self._server
        return server.server_address[1] if server else 0

    def start(self) -> None:
        """Listen and serve."""
        try:
            self._listen()
        except OSError as error:
            log.warning(
                "cannot serve the page on %s: %s; retrying every second",
                self._address,
                error.strerror or error,
            )
            self._retry = Worker("page-retry", self._listen_later)
            self._retry.start()
        else:
            log.info("serving the page on http://%s/", self._address)

    def stop(self) -> None:
        """Close the port."""
        self._stopping.set()
        if self._retry is not None:
            self._retry.end(_STOP_TIMEOUT)
        with self._lock:
            if self._server is not None:
                self._server.stop()
                self._server = None

    def _listen_later(self) -> None:
        listen_later(self._listen, f"http://{self._address}/", self._stopping)

    def _listen(self) -> None:
        with self._lock:
            if not self._stopping.is_set():
                server = _Listener(self._address, self._agent, self._turns, self._counters)
                server.start()
                self._server = server


class _Listener(BoundedThreads, socketserver.TCPServer):
    # Not http.server's HTTPServer, which asks the name server for the name of its own address and
    # so delays the start of the agent.

    # A browser opens up to six connections, and each open page keeps one for /changes.
    clients = 32
    request_queue_size = 128
    # A restarted agent binds although connections of the last one are in TIME_WAIT.
    allow_reuse_address = True

    def __init__(
        self,
        address: ListenAddress,
        agent: AgentView,
        turns: Turns,
        counters: OpenCounters | None,
    ) -> None:
        # TCPServer.__init__ makes the socket, so its family must be known before.
        if family_of(address.address) is Family.IPV6:
            self.address_family = socket.AF_INET6
        self.agent = agent
        self.turns = turns
        self.timeline = Timeline()
        self.rendered = RecentPages(time.monotonic)
        self.viewed_at = float("-inf")
        super().__init__((address_text(address.address), address.port), _Handler)
        self._open_counters = counters
        # Opened at the first count, because the kernel may refuse it for a while.
        self._counter: ConnectionCounter | None = None
        self._recorder = Recorder(
            agent, self.timeline, time.time, time.monotonic, self._count, self._has_viewers
        )
        self._thread = Worker("page", self.serve_forever)

    def start(self) -> None:
        self._recorder.start()
        self._thread.start()

    def stop(self) -> None:
        # serve_forever polls twice a second, so this takes half a second at most. In the thread of
        # serve_forever itself, `shutdown` would wait forever.
        self.shutdown()
        self._thread.end(_STOP_TIMEOUT)
        self._recorder.stop()
        self.server_close()
        if self._counter is not None:
            self._counter.close()

    def _count(self) -> int | None:
        """Count as ConnectionCounter, and raise OSError too."""
        if self._counter is None:
            if self._open_counters is None:
                return None
            self._counter = ConnectionCounter(self._open_counters())
        return self._counter.count()

    def _has_viewers(self) -> bool:
        return time.monotonic() - self.viewed_at < _VIEWER_TIMEOUT


class _Handler(RequestHandler):
    server: _Listener
    usage_status = HTTPStatus.NOT_FOUND
    extra_headers = _SECURITY_HEADERS

    def get(self, path: str, query: str) -> None:
        """Respond to one request. Raises PyproxyError, ValueError."""
        if not is_trusted_host(self.headers.get("Host", "")):
            self.fail(HTTPStatus.FORBIDDEN, "use an IP address or localhost in the URL")
            return
        first, _, rest = path.removeprefix("/").partition("/")
        match first:
            case "" if not rest:
                given = msgspec.convert(dict(parse_qsl(query)), SearchQuery, strict=False)
                self._page(given, lambda snapshot: pages.overview(snapshot, given))
            case "services" if rest:
                name = unquote(rest)
                self._page(name, lambda snapshot: pages.service(snapshot, name))
            case "explain" if rest:
                target = unquote(rest)
                key = ("explain", target)
                self._page(key, lambda snapshot: pages.explanation(snapshot, target))
            # Only the charts count as a viewer: other tools may poll the page itself.
            case "timeline":
                self.server.viewed_at = time.monotonic()
                moments = self.server.timeline.moments(time.time())
                self.respond(HTTPStatus.OK, msgspec.json.encode(moments), "application/json")
            case "changes":
                self._changes()
            case "static" if rest in _STATIC:
                # `rest` is one of the names above, so it cannot leave the folder.
                body = (files("pyproxy.ui") / "static" / rest).read_bytes()
                self.respond(HTTPStatus.OK, body, _STATIC[rest])
            case _:
                raise UsageError(f"{path}: no such page")

    def fail(self, status: HTTPStatus, message: str) -> None:
        """Send an error page."""
        self._html(status, pages.error(message))

    def _page(self, key: Hashable, render: Callable[[Snapshot], str]) -> None:
        """Send a page, rendered at most once in `REFRESH_SECONDS` for all readers."""
        found = self.server.rendered.get(key)
        if found is None:
            # Before the turn: the agent's thread takes the snapshot, and others compute meanwhile.
            snapshot, taken_at = self.server.agent.snapshot(), time.monotonic()
            with self.server.turns.turn(peer_of(self.client_address)):
                # Another reader may have rendered the page while this one waited.
                found = self.server.rendered.get(key)
                if found is None:
                    found = render(snapshot).encode()
                    self.server.rendered.put(key, found, taken_at)
        self.respond(HTTPStatus.OK, found, _HTML)

    def _changes(self) -> None:
        """Send an event after changes, until the browser closes the connection."""
        self.server.connections.streams(self.connection)
        self.send_head(HTTPStatus.OK, "text/event-stream")
        # The milliseconds after which the browser's EventSource connects again.
        self.wfile.write(b"retry: 2000\n\n")
        for line in change_events(self.server.timeline.changes, time.sleep):
            self.wfile.write(line)

    def _html(self, status: HTTPStatus, text: str) -> None:
        self.respond(status, text.encode(), _HTML)


def is_trusted_host(host: str) -> bool:
    """Return whether a request's Host is an IP address or localhost.

    Any other name may be one whose owner makes it resolve to this node, so that a page of that name
    could read this one (DNS rebinding).
    """
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def change_events(changes: Callable[[], int], sleep: Callable[[float], None]) -> Iterator[bytes]:
    """Yield an event after each period with changes, a comment after one without.

    `changes` counts the changes so far. A change is announced after one more period, when no page
    rendered before it is sent any more.
    """
    announced = before = changes()
    while True:
        sleep(REFRESH_SECONDS)
        if before != announced:
            announced = before
            yield f"data: {announced}\n\n".encode()
        else:
            # Only a write detects a closed connection.
            yield b":\n\n"
        before = changes()
