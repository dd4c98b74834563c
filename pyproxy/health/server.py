"""The servers of --healthz-bind-address and --metrics-bind-address."""

from __future__ import annotations

import asyncio
import logging
import time

from pyproxy.config.settings import ListenAddress, Settings
from pyproxy.errors import UsageError
from pyproxy.health.http import HttpThread, Listener
from pyproxy.health.limits import Limits
from pyproxy.health.messages import Handler
from pyproxy.health.pages import health_pages, metrics_pages
from pyproxy.health.slow import SlowThread
from pyproxy.health.sockets import bind
from pyproxy.health.state import Health
from pyproxy.metrics import Metrics

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0
_NAMES = {"--healthz-bind-address": "health", "--metrics-bind-address": "metrics"}


class HealthServers:
    """Serves health and metrics between `start` and `stop`.

    Connections of the node itself, such as the kubelet's probes, have a thread of their own, so
    that no pod can delay them. Binding an address is retried every second, with one log line,
    unless `--bind-address-hard-fail` is set. `http` may serve other listeners too.
    """

    def __init__(
        self, settings: Settings, health: Health, metrics: Metrics, limits: Limits
    ) -> None:
        self._slow = SlowThread()
        self.http = HttpThread("http", limits.public, self._slow)
        self._own = HttpThread("http-own", limits.own, self._slow)
        self._queues = limits.queues
        self._serving = settings.serving
        self._health_pages = health_pages(health, metrics)
        self._metrics_pages = metrics_pages(settings, metrics, time.time(), time.time)
        self._listeners: dict[str, Listener] = {}

    @property
    def threads(self) -> tuple[HttpThread, ...]:
        """The threads that have connections, for metrics."""
        return (self.http, self._own)

    def start(self) -> None:
        """Listen. Raises UsageError if an address cannot be bound and hard-fail is set."""
        self._slow.start()
        for thread in self.threads:
            thread.start()
        self._serve("--healthz-bind-address", self._serving.health, self._health_pages)
        self._serve("--metrics-bind-address", self._serving.metrics, self._metrics_pages)

    def stop(self) -> None:
        """Close all listeners, also others of `http`. Blocks for two seconds at most."""
        for thread in self.threads:
            thread.stop()
        self._slow.stop()

    @property
    def health_port(self) -> int | None:
        """The port of the health address, or None if not served."""
        return self._port("--healthz-bind-address")

    @property
    def metrics_port(self) -> int | None:
        """The port of the metrics address, or None if not served."""
        return self._port("--metrics-bind-address")

    def _port(self, flag: str) -> int | None:
        listener = self._listeners.get(flag)
        return listener.port if listener else None

    def _serve(self, flag: str, address: ListenAddress | None, pages: Handler) -> None:
        if address is None:
            return
        try:
            self._listen(flag, address, pages)
        except OSError as error:
            message = f"{flag}: cannot listen on {address}: {error.strerror}"
            if self._serving.hard_fail:
                self.stop()
                raise UsageError(f"{message}: free it or set another address") from error
            log.warning("%s; retrying every second", message)
            self.http.spawn(self._retry(flag, address, pages))

    def _listen(self, flag: str, address: ListenAddress, pages: Handler) -> None:
        sockets = bind(address, self._queues, own=True)
        if sockets.own is not None:
            self._own.serve((sockets.own,), pages, _NAMES[flag])
        self._listeners[flag] = self.http.serve(sockets.public, pages, _NAMES[flag])

    async def _retry(self, flag: str, address: ListenAddress, pages: Handler) -> None:
        while flag not in self._listeners:
            await asyncio.sleep(_RETRY_SECONDS)
            try:
                self._listen(flag, address, pages)
            except OSError as error:
                log.debug("%s: still cannot listen on %s: %s", flag, address, error.strerror)
        log.info("%s: listening on %s", flag, address)
