"""An HTTP server on loopback whose responses a test scripts, and objects for them."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from pyproxy.model.events import Delete, Event, InvalidObject, Synced, Upsert
from pyproxy.model.objects import Kind
from pyproxy.source.access import Access, ServerConfig
from pyproxy.source.client import Client
from pyproxy.source.kubernetes import KubernetesSource
from tests.waiting import PATIENCE

SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
NODES = "/api/v1/nodes"


class Request(NamedTuple):
    """One received request."""

    method: str
    route: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""


class Exchange(BaseHTTPRequestHandler):
    """One request, and the ways to respond to it."""

    protocol_version = "HTTP/1.1"
    server: Server

    @property
    def route(self) -> str:
        return urlsplit(self.path).path

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.path).query))

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append(Request(self.command, self.route, self.query, headers, body))
        self.server.script(self)

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def respond(
        self,
        obj: object,
        status: int = 200,
        headers: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> None:
        body = obj if isinstance(obj, bytes) else json.dumps(obj).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def events(self, events: Iterable[tuple[str, object]]) -> None:
        for kind, obj in events:
            self.chunk(json.dumps({"type": kind, "object": obj}).encode() + b"\n")

    def end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def hold(self) -> None:
        """Send nothing more until the client disconnects or the test ends."""
        self.connection.settimeout(0.02)
        while not self.server.closing.is_set():
            try:
                if not self.connection.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        self.close_connection = True

    def fail(self, code: int, message: str = "no", **headers: str) -> None:
        status = {"kind": "Status", "status": "Failure", "code": code, "message": message}
        self.respond(status, code, {k.replace("_", "-"): v for k, v in headers.items()})


Script = Callable[[Exchange], None]


class Server(ThreadingHTTPServer):
    """Passes every request to its script, which a test may replace at any time."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, script: Script, port: int, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", port), Exchange)
        self.tls = tls
        self.script = script
        self.seen: list[Request] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.server_port}"

    def requests_for(self, route: str, **query: str) -> list[Request]:
        """Return the requests so far with this path and these parameters."""
        return [e for e in self.seen if e.route == route and query.items() <= e.query.items()]

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.tls is not None:
            request = self.tls.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # these tests disconnect clients on purpose


@contextmanager
def serving(script: Script, port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(script, port, tls)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def quiet(exchange: Exchange) -> None:
    """Respond like a server without objects and without changes."""
    if exchange.query.get("watch"):
        exchange.begin()
        if exchange.query.get("sendInitialEvents"):
            exchange.events([end_of_list("1")])
        exchange.hold()
    else:
        exchange.respond(listed(exchange.route, []))


def listed(route: str, items: list[Any], version: str = "1", token: str = "") -> dict[str, Any]:
    kinds = {SERVICES: "ServiceList", SLICES: "EndpointSliceList", NODES: "NodeList"}
    return {
        "kind": kinds[route],
        "metadata": {"resourceVersion": version} | ({"continue": token} if token else {}),
        "items": items,
    }


def end_of_list(version: str) -> tuple[str, object]:
    annotations = {"k8s.io/initial-events-end": "true"}
    return "BOOKMARK", {"metadata": {"resourceVersion": version, "annotations": annotations}}


def bookmark(version: str) -> tuple[str, object]:
    return "BOOKMARK", {"metadata": {"resourceVersion": version}, "endpoints": None}


def a_service(name: str, version: str = "1", port: object = 80) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": version},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": port}]},
    }


class Pace:
    """A clock that records waits and barely waits."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def now(self) -> float:
        return time.monotonic()

    def wait(self, stopping: threading.Event, seconds: float) -> None:
        self.waits.append(seconds)
        stopping.wait(0.001)


class Recorder:
    """Records the events of a source. Thread-safe."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def until(self, condition: Callable[[list[str]], bool], seconds: float = PATIENCE) -> list[str]:
        """Wait until the events of Services meet a condition; fail at the deadline."""
        with self._changed:
            met = self._changed.wait_for(lambda: condition(self.services()), seconds)
            assert met, self.services()
            return self.services()

    def services(self) -> list[str]:
        """Return the events of Services, each as a short text."""
        return [text for event in self.events if (text := _text(event))]


def _text(event: Event) -> str:
    match event:
        case Upsert(obj=obj) if type(obj).__name__ == "Service":
            return f"+{obj.name.name}" if not isinstance(obj.name, str) else ""
        case Delete(kind=Kind.SERVICE, name=name):
            return f"-{name.name}"
        case Synced(kind=Kind.SERVICE, names=names):
            return f"={','.join(sorted(name.name for name in names))}"
        case InvalidObject(problem=problem) if problem.kind == "Service":
            return f"!{problem.name}"
        case _:
            return ""


def client_of(*urls: str) -> Client:
    return Client(lambda: Access(ServerConfig()), urls)


@contextmanager
def following(
    *urls: str, silence: float = 5.0, clock: Pace | None = None
) -> Iterator[tuple[Recorder, KubernetesSource]]:
    recorder = Recorder()
    source = KubernetesSource(
        client_of(*urls), "node-a", recorder, silence=silence, clock=clock or Pace()
    )
    source.start()
    try:
        yield recorder, source
    finally:
        source.stop()


def services(script: Script) -> Script:
    """Pass requests for Services to a script, and respond to all others with `quiet`."""

    def respond(exchange: Exchange) -> None:
        (script if exchange.route == SERVICES else quiet)(exchange)

    return respond


def stream(exchange: Exchange, *events: tuple[str, object], hold: bool = True) -> None:
    exchange.begin()
    exchange.events(events)
    if hold:
        exchange.hold()
    else:
        exchange.end()


def gone(exchange: Exchange) -> None:
    stream(exchange, ("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"}), hold=False)
