"""Services, EndpointSlices and this node's Node from the Kubernetes API."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from random import SystemRandom

from pyproxy.model.events import Event
from pyproxy.model.objects import Kind, ObjectName
from pyproxy.source.client import Client
from pyproxy.source.reflector import Reflector, ReflectorContext, Resource
from pyproxy.source.retry import Clock, OutageLog, SystemClock
from pyproxy.workers import Worker

SELECTOR = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name"
"""The labels by which a Service and its slices say that they are not for this proxy."""

SILENCE = 50.0
"""Seconds that a watch may stay without a byte.

Below the minute within which a half-open watch is to be found. A server sends bookmarks about
every minute, so a watch on which nothing else happens is asked again, from where it was, each time
this runs out; a cluster in which that is too many requests may set it above 75 seconds.
"""

STOP_TIMEOUT = 1.0
"""Seconds that `stop` waits for the threads."""


class KubernetesSource:
    """Lists and watches in one thread a kind.

    `emit` gets the events, each kind's in their order, from three threads at once: it must take
    that, and must not block for long.
    """

    def __init__(
        self,
        client: Client,
        hostname: str,
        emit: Callable[[Event], None],
        *,
        silence: float = SILENCE,
        clock: Clock | None = None,
    ) -> None:
        self._client = client
        self._clock = clock or SystemClock()
        self._made = self._clock.now()
        self._stopping = threading.Event()
        around = ReflectorContext(
            client, emit, self._clock, SystemRandom(), silence, self._stopping, OutageLog()
        )
        self._reflectors = [Reflector(resource, around) for resource in resources(hostname)]
        self._threads = [
            Worker(f"source-{reflector.resource.kind.value}", reflector.run)
            for reflector in self._reflectors
        ]

    def start(self) -> None:
        """Begin to list; returns at once."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End all threads, also those that wait for a server; may be called more than once.

        A thread that is just looking up a name or connecting cannot be interrupted. It ends by
        itself, without another event, and does not keep the process from ending.
        """
        self._stopping.set()
        deadline = time.monotonic() + STOP_TIMEOUT
        for thread in self._threads:
            thread.end()
        for thread in self._threads:
            # More than once, for a thread may just have been between two requests.
            while thread.is_alive() and time.monotonic() < deadline:
                self._client.interrupt()
                thread.join(0.02)

    def age(self) -> float:
        """Seconds since anything was read, bookmarks too, of the kind for which it is longest.

        A kind that nothing was ever read of counts from when this was made.
        """
        read = (reflector.last_read for reflector in self._reflectors)
        return self._clock.now() - min(self._made if at is None else at for at in read)


def resources(hostname: str) -> list[Resource]:
    """What a Service proxy asks for: its Services, their slices, and its own Node."""
    ours = {"labelSelector": SELECTOR}
    return [
        Resource(Kind.SERVICE, "/api/v1/services", "ServiceList", ours),
        Resource(
            Kind.ENDPOINT_SLICE,
            "/apis/discovery.k8s.io/v1/endpointslices",
            "EndpointSliceList",
            ours,
        ),
        Resource(
            Kind.NODE,
            "/api/v1/nodes",
            "NodeList",
            {"fieldSelector": f"metadata.name={hostname}"},
            ObjectName("", hostname),
        ),
    ]
