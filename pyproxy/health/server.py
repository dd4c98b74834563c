"""The servers of --healthz-bind-address and --metrics-bind-address."""

from __future__ import annotations

import asyncio
import logging
import time

from pyproxy.config.settings import ListenAddress, Settings
from pyproxy.errors import UsageError
from pyproxy.health.http import Handler, HttpThread, Listener
from pyproxy.health.pages import health_pages, metrics_pages
from pyproxy.health.state import Health
from pyproxy.metrics import Metrics

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0


class HealthServers:
    """Serves health and metrics between `start` and `stop`.

    Binding an address is retried every second, with one log line, unless
    `--bind-address-hard-fail` is set. `http` may serve other listeners too.
    """

    def __init__(self, settings: Settings, health: Health, metrics: Metrics) -> None:
        self.http = HttpThread()
        self._serving = settings.serving
        self._health_pages = health_pages(health, metrics)
        self._metrics_pages = metrics_pages(settings, metrics, time.time(), time.time)
        self._listeners: dict[str, Listener] = {}

    def start(self) -> None:
        """Listen. Raises UsageError if an address cannot be bound and hard-fail is set."""
        self.http.start()
        self._serve("--healthz-bind-address", self._serving.health, self._health_pages)
        self._serve("--metrics-bind-address", self._serving.metrics, self._metrics_pages)

    def stop(self) -> None:
        """Close all listeners of `http`. Blocks for a second at most."""
        self.http.stop()

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
            self._listeners[flag] = self.http.listen(address, pages)
        except OSError as error:
            message = f"{flag}: cannot listen on {address}: {error.strerror}"
            if self._serving.hard_fail:
                self.http.stop()
                raise UsageError(f"{message}: free it or set another address") from error
            log.warning("%s; retrying every second", message)
            self.http.spawn(self._retry(flag, address, pages))

    async def _retry(self, flag: str, address: ListenAddress, pages: Handler) -> None:
        while flag not in self._listeners:
            await asyncio.sleep(_RETRY_SECONDS)
            try:
                self._listeners[flag] = await self.http.serve(address, pages)
            except OSError as error:
                log.debug("%s: still cannot listen on %s: %s", flag, address, error.strerror)
        log.info("%s: listening on %s", flag, address)
