"""The server: its HTTP application, and a thread to run it in."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from aiohttp import web
from aiohttp.typedefs import Middleware

from pyproxy.errors import UsageError
from pyproxy_lab.apiserver import access, discovery, openapi, status
from pyproxy_lab.apiserver.encodings import Encodings
from pyproxy_lab.apiserver.exec import ExecHandler
from pyproxy_lab.apiserver.faults import Faults
from pyproxy_lab.apiserver.handlers import ResourceHandler
from pyproxy_lab.apiserver.logs import LogHandler
from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.portforward import PortForwardHandler
from pyproxy_lab.apiserver.protobuf_fields import SENT
from pyproxy_lab.apiserver.registry import Registry
from pyproxy_lab.apiserver.rendering import ProtobufRendering, status_body
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.apiserver.store import encode
from pyproxy_lab.namespace import Namespace

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")

_LARGEST_BODY = 16 * 1024 * 1024
_BACKLOG = 1024
_LOOPBACK = "127.0.0.1"
_HEALTH_PATHS = ("/healthz", "/livez", "/readyz")
_NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")
_NO_CACHE = {"Cache-Control": "no-cache, private"}


class ApiServer:
    """A server with its objects.

    `middlewares` are aiohttp's, outermost first, around everything that is served; `faults` are
    those that come with the server. All of it runs in the thread of one event loop; the methods
    without `async` may be called from any other thread once `running` has started it.
    """

    def __init__(self, settings: Settings, middlewares: Sequence[Middleware] = ()) -> None:
        self.settings = settings
        self.url = ""
        self.secure_url = self.loopback_url = ""
        """The URLs with TLS, on `host` and on this process's 127.0.0.1; empty without `secure`."""

        self.ca = b""
        """The certificate, as PEM, by which a client knows the server at these URLs."""

        self._secure_context: ssl.SSLContext | None = None
        self.registry = Registry(settings)
        self.faults = Faults()
        self._resources = ResourceHandler(settings, self.registry, self.faults)
        self._middlewares = tuple(middlewares)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: web.AppRunner | None = None
        self._port = settings.port
        self._secure_port = self._loopback_port = 0

    @classmethod
    @contextlib.contextmanager
    def running(
        cls, settings: Settings, middlewares: Sequence[Middleware] = ()
    ) -> Iterator[ApiServer]:
        """Run a server in a thread of its own. Raises UsageError if it cannot listen."""
        server = cls(settings, middlewares)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="apiserver", daemon=True)
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(server.start(), loop).result()
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def start(self) -> None:
        """Listen, and make what every cluster has. Raises UsageError if it cannot listen."""
        self._loop = asyncio.get_running_loop()
        application = web.Application(
            middlewares=[*self._middlewares, self.faults.middleware, _errors_as_status],
            client_max_size=_LARGEST_BODY,
        )
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            application, access_log=None, handler_cancellation=True, shutdown_timeout=1.0
        )
        await self._runner.setup()
        await self._listen(self._runner)
        host, self._port = self._runner.addresses[0][:2]
        shown = f"[{host}]" if ":" in host else host
        scheme = "https" if self.settings.tls_cert else "http"
        self.url = f"{scheme}://{shown}:{self._port}"
        if self.settings.secure:
            self.secure_url = f"https://{shown}:{self._secure_port}"
            self.loopback_url = f"https://{_LOOPBACK}:{self._loopback_port}"
        self.registry.load(_namespaces())
        self.registry.keep(_api_service(self.settings, self._port))

    async def _listen(self, runner: web.AppRunner) -> None:
        settings = self.settings
        await _serve(runner, self._bind(self._port), _tls(settings))
        if settings.secure:
            context = self._own_context()
            secure = self._bind(self._secure_port)
            local = _listener(_LOOPBACK, self._loopback_port)
            self._secure_port, self._loopback_port = (
                each.getsockname()[1] for each in (secure, local)
            )
            for each in (secure, local):
                await _serve(runner, each, context)

    def _bind(self, port: int) -> socket.socket:
        """Listen on `host`, in the network namespace of the settings. Raises UsageError."""
        settings = self.settings
        try:
            return self._in_netns(partial(_listener, settings.host, port))
        except OSError as error:
            raise UsageError(
                f"lab apiserver: --listen {settings.host}:{settings.port}: {error.strerror}"
            ) from error

    def _in_netns(self, bind: Callable[[], socket.socket]) -> socket.socket:
        netns = self.settings.netns
        return Namespace(netns).call(bind) if netns else bind()

    def _own_context(self) -> ssl.SSLContext:
        """Make the certificate of the URLs with TLS once."""
        if self._secure_context is None:
            import trustme  # noqa: PLC0415

            authority = trustme.CA()
            self._secure_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            names = dict.fromkeys((_LOOPBACK, self.settings.host))
            authority.issue_cert(*names).configure_cert(self._secure_context)
            self.ca = authority.cert_pem.bytes()
        return self._secure_context

    async def stop(self) -> None:
        """End all watches and close."""
        self._end_watches()
        if self._runner is not None:
            await self._runner.cleanup()

    def load(self, objects: Iterable[Object]) -> int:
        """Create or replace many objects, status included, unchecked; count them."""
        return self.call(lambda: self.registry.load(objects))

    def close_watches(self) -> None:
        """End all watches as at their timeouts; their clients will start new ones."""
        self.call(self._end_watches)

    def expire_watches(self) -> None:
        """End watches with 410 that are from before now; lists go back as far as they did."""
        self.call(self._expire)

    def forget_history(self, keep: int = 0) -> None:
        """Forget all but the newest changes of each kind, for watches and for lists."""
        self.call(lambda: self._trim(keep))

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Inside it all connections are cut, and new ones refused; the objects stay."""
        self._await(self._hang_up())
        with contextlib.closing(self._in_netns(partial(_reserve, self.settings.host, self._port))):
            try:
                yield
            finally:
                self._await(self._listen(self._started))

    @property
    def exec(self) -> ExecHandler:
        """The handler of `kubectl exec`: set its runner."""
        return self._resources.exec

    @property
    def logs(self) -> LogHandler:
        """The handler of `kubectl logs`: set its source."""
        return self._resources.logs

    @property
    def port_forward(self) -> PortForwardHandler:
        """The handler of `kubectl port-forward`: set its dialer."""
        return self._resources.port_forward

    @property
    def watch_count(self) -> int:
        """How many watches are open."""
        return len(self._resources.watches)

    def encode_all(self) -> None:
        """Encode all objects in protobuf ahead of their first use: many take seconds."""

        def encode_in_thread() -> None:
            for table in self.registry.store.tables():
                if table.resource.kind in SENT:
                    form = ProtobufRendering(table.resource)
                    for stored in table.current("/"):
                        form.body(stored)

        self.call(encode_in_thread)

    @property
    def encodings(self) -> Encodings:
        """The encodings that a kube-apiserver would have made."""
        return self._resources.encodings

    def call(self, function: Callable[[], T]) -> T:
        """Run something in the server's thread, between two requests, and give its result."""

        async def run() -> T:
            return function()

        return self._await(run())

    @property
    def _started(self) -> web.AppRunner:
        if self._runner is None:
            raise RuntimeError("the server has not been started")
        return self._runner

    def _await(self, coroutine: Coroutine[None, None, T]) -> T:
        if self._loop is None:
            coroutine.close()
            raise RuntimeError("the server has not been started")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _hang_up(self) -> None:
        runner = self._started
        for site in tuple(runner.sites):
            await site.stop()
        for connection in runner.server.connections if runner.server else ():
            connection.force_close()

    def _end_watches(self) -> None:
        for watch in self._resources.watches:
            watch.close()

    def _trim(self, keep: int) -> None:
        for table in self.registry.store.tables():
            table.trim(keep)

    def _expire(self) -> None:
        store = self.registry.store
        for table in store.tables():
            table.watchable_from = store.revision

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path in _HEALTH_PATHS:
            return web.Response(text="ok", headers=_NO_CACHE)
        if request.path == openapi.V2_PATH:
            # kubectl's last resort for kinds that no v3 document has: no schema, nothing to check.
            return web.Response(body=b"", content_type=openapi.V2_TYPE, headers=_NO_CACHE)
        user = access.authenticate(self.settings, request.headers.get("Authorization", ""))
        found = _document(request)
        if found is not None:
            return web.Response(
                body=encode(found), content_type="application/json", headers=_NO_CACHE
            )
        return await self._resources.handle(request, user)


@web.middleware
async def _errors_as_status(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except status.ApiError as error:
        return _error_response(request, error)
    except web.HTTPRequestEntityTooLarge:
        message = f"Request entity too large: limit is {_LARGEST_BODY}"
        return _error_response(request, status.ApiError(413, "RequestEntityTooLarge", message))


def _document(request: web.Request) -> Object | None:
    """Return what a path that names no objects is answered with, if it is such a path."""
    found: Object | None = None
    match request.path.strip("/").split("/"):
        case ["version"]:
            found = discovery.version()
        case ["api"]:
            found = discovery.core_versions(request.host)
        case ["apis"]:
            found = discovery.groups()
        case ["api", version]:
            found = discovery.resources("", version)
        case ["apis", name]:
            found = discovery.group(name)
        case ["apis", name, version]:
            found = discovery.resources(name, version)
        case ["openapi", "v3"]:
            found = openapi.index()
        case ["openapi", "v3", *path]:
            found = openapi.document("/".join(path))
    return found


def _error_response(request: web.Request, error: status.ApiError) -> web.Response:
    body, media_type = status_body(error.status, request.headers.get("Accept", "*/*"))
    return web.Response(status=error.code, body=body, content_type=media_type, headers=_NO_CACHE)


def _listener(host: str, port: int) -> socket.socket:
    """Bind the address, in the network namespace of the calling thread. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    # create_server sets SO_REUSEADDR, so that a server can come back to its port.
    return socket.create_server(address, family=family, backlog=_BACKLOG)


def _reserve(host: str, port: int) -> socket.socket:
    """Bind the address without listening, so that the kernel gives the port to no other program.

    Servers with SO_REUSEADDR can listen beside it. Raises OSError.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    holder = socket.socket(family)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(address)
    except OSError:
        holder.close()
        raise
    return holder


async def _serve(
    runner: web.AppRunner, listener: socket.socket, context: ssl.SSLContext | None
) -> None:
    await web.SockSite(runner, listener, ssl_context=context, backlog=_BACKLOG).start()


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"lab apiserver: --tls-cert {settings.tls_cert}: {error}") from error
    return context


def _namespaces() -> list[Object]:
    """Return the namespaces that every cluster has."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name},
            "spec": {"finalizers": ["kubernetes"]},
        }
        for name in _NAMESPACES
    ]


def _api_service(settings: Settings, port: int) -> Object:
    """Return the Service of the API server, which is the cluster's own."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "clusterIP": str(settings.cluster_ips[0][1]),
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port}],
        },
    }
