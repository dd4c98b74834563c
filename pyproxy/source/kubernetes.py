"""Services, EndpointSlices and this node's Node from the Kubernetes API."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from random import SystemRandom

from pyproxy.errors import SourceError
from pyproxy.model.config_problems import ConfigProblem
from pyproxy.model.events import Event, Synced
from pyproxy.model.objects import Kind, ObjectName
from pyproxy.source.client import Client
from pyproxy.source.formats import import_first
from pyproxy.source.lookup import node_names
from pyproxy.source.media_types import DEFAULT_ACCEPT
from pyproxy.source.object_events import Resource
from pyproxy.source.outages import OutageLog
from pyproxy.source.reflector import Reflector, ReflectorContext
from pyproxy.source.retry import Clock, SystemClock
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

# As in kube-proxy. The EndpointSlice controller copies the labels of the Service to its slices,
# and adds the label headless to those of headless Services.
SELECTOR = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name"
"""The label selector that excludes Services and slices of other proxies, and headless ones."""

SILENCE = 80.0
"""Seconds without a byte after which a watch is restarted from its last version.

The API server's bookmarks are up to 75 seconds apart, so an idle watch stays open. A shorter
silence would cost a request a minute for each kind and node. The kernel detects a dead peer within
30 seconds (`access.SOCKET_OPTIONS`), so this is for one that hangs while its kernel acknowledges.
"""

STOP_TIMEOUT = 1.0
"""Seconds that `stop` waits for the threads."""


class KubernetesSource:
    """Lists and watches Services, EndpointSlices and this Node, each kind in a thread of its own.

    `emit` is called from the three threads at once, in order for each kind. It must be thread-safe
    and must not block for long. `accept` is the header Accept of
    their requests.
    """

    def __init__(
        self,
        client: Client,
        hostname: str,
        emit: Callable[[Event], None],
        *,
        silence: float = SILENCE,
        clock: Clock | None = None,
        accept: str = DEFAULT_ACCEPT,
    ) -> None:
        self._client = client
        self._emit = emit
        self._accept = accept
        self._node_names: tuple[str, ...] = ()
        self._outages = OutageLog(lambda: client.proxy)
        self._clock = clock or SystemClock()
        self._made = self._clock.now()
        self._stopping = threading.Event()
        context = ReflectorContext(
            client,
            self._pass_on,
            self._clock,
            SystemRandom(),
            silence,
            self._stopping,
            self._outages,
            accept,
        )
        self._reflectors = [Reflector(resource, context) for resource in resources(hostname)]
        self._threads = [
            Worker(f"source-{reflector.resource.kind.value}", reflector.run)
            for reflector in self._reflectors
        ]

    def start(self) -> None:
        """Start the threads; returns at once."""
        for thread in self._threads:
            thread.start()
        # Now, because the threads wait for the server.
        Worker("source-format", partial(import_first, self._accept)).start()

    def stop(self) -> None:
        """End all threads, including those that wait for a server. Idempotent.

        Blocks for a second at most. A thread that resolves a name or connects cannot be
        interrupted: it ends later by itself, without another event, and as a daemon thread does
        not keep the process alive.
        """
        self._stopping.set()
        deadline = time.monotonic() + STOP_TIMEOUT
        for thread in self._threads:
            thread.end()
        for thread in self._threads:
            # More than once, because a thread may have been between two requests.
            while thread.is_alive() and time.monotonic() < deadline:
                self._client.interrupt()
                thread.join(0.02)

    def node_names(self) -> tuple[str, ...]:
        """Return some names of Nodes if the last list had no Node of this name."""
        return self._node_names

    def problems(self) -> tuple[ConfigProblem, ...]:
        """Return the mistakes that the failing requests show. They are logged already."""
        return self._outages.problems()

    def age(self) -> float:
        """Return the seconds since an event or bookmark was read, of the kind with the oldest one.

        A kind of which nothing has been read counts from the construction.
        """
        read = (reflector.last_read for reflector in self._reflectors)
        return self._clock.now() - min(self._made if at is None else at for at in read)

    def _pass_on(self, event: Event) -> None:
        """Emit an event, after reading the names of Nodes if this Node does not exist."""
        # One request for each list of this Node, which follows a lost watch at most.
        if isinstance(event, Synced) and event.kind is Kind.NODE:
            self._node_names = () if event.names else self._read_node_names()
        self._emit(event)

    def _read_node_names(self) -> tuple[str, ...]:
        try:
            return node_names(self._client)
        except SourceError as error:
            log.debug("cannot read the names of Nodes: %s", error)
            return ()


def resources(hostname: str) -> list[Resource]:
    """Return the resources to watch: Services, their EndpointSlices and this Node."""
    selector = {"labelSelector": SELECTOR}
    return [
        Resource(Kind.SERVICE, "/api/v1/services", "ServiceList", selector),
        Resource(
            Kind.ENDPOINT_SLICE,
            "/apis/discovery.k8s.io/v1/endpointslices",
            "EndpointSliceList",
            selector,
        ),
        Resource(
            Kind.NODE,
            "/api/v1/nodes",
            "NodeList",
            {"fieldSelector": f"metadata.name={hostname}"},
            ObjectName("", hostname),
        ),
    ]
