"""Health-check node ports: load balancers check here whether this node has local endpoints.

A Service of type LoadBalancer with externalTrafficPolicy Local has such a port
(spec.healthCheckNodePort). Every path returns the same response, as in kube-proxy v1.36.
"""

from __future__ import annotations

import errno
import heapq
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, wait

import msgspec

from pyproxy import logs
from pyproxy.backoff import Backoff
from pyproxy.errors import Problem
from pyproxy.health.check_port import (
    OpenPort,
    Place,
    ServiceHealthCheck,
    listen_problem,
    owner_of,
    reserved_problem,
)
from pyproxy.health.http import HttpThread, Listener
from pyproxy.health.messages import Request, Response
from pyproxy.model.address import Address, Family, family_of
from pyproxy.model.objects import ObjectName

log = logging.getLogger(__name__)

LISTENER_NAME = "health-check-node-port"

_FIRST_RETRY = 1.0
_LONGEST_RETRY = 30.0
_AT_ONCE = 16
"""Sockets that one call opens, about: each takes 0.03 to 0.2 ms of the agent's thread."""

_PART = 0.001
"""Seconds after which a call opens no further port, however slow the kernel is."""

_CLOSING_TIMEOUT = 0.002
"""Seconds that a call waits for closed ports: thousands take longer, and others must not wait."""

_QUEUES = 4
"""Accept queues of a port: a client that connects too fast keeps out one in four others."""

_QUEUES_IN_ALL = 2048
"""Sockets from which on each port has one queue; as many more ports must still have room."""

_LOG_LINES = 10
_LOG_PERIOD = 60.0

# A template, because no JSON library indents like kube-proxy and some probes compare the text.
_BODY = """{{
\t"service": {{
\t\t"namespace": {namespace},
\t\t"name": {name}
\t}},
\t"localEndpoints": {endpoints},
\t"serviceProxyHealthy": {healthy}
}}"""


class ListenOptions(msgspec.Struct, frozen=True):
    """Where and how much to listen.

    In the families of `everywhere`, all addresses of the node count, and one socket has them all.
    `most` is the number of sockets, `own_ports` are those of the agent itself.
    """

    most: int
    everywhere: frozenset[Family] = frozenset()
    own_ports: frozenset[int] = frozenset()


class _Retry(msgspec.Struct):
    """When to open a Service's missing listeners again, in seconds of the clock."""

    backoff: Backoff
    due: float


class ServiceHealthServer:
    """The listeners of all Services with a health-check node port.

    All methods must be called from one thread, that of the agent. Responses are made in the thread
    of `http`. `is_healthy` returns whether the proxy itself works. `report` is called once for each
    new Problem. `clock` returns monotonic seconds.
    """

    def __init__(
        self,
        http: HttpThread,
        options: ListenOptions,
        is_healthy: Callable[[], bool],
        report: Callable[[Problem], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http = http
        self._options = options
        self._is_healthy = is_healthy
        self._report = report
        self._clock = clock
        self._addresses: frozenset[Address] = frozenset()
        self._services: dict[ObjectName, OpenPort] = {}
        self._count = 0
        # Listeners that are served when all of a change are bound: each call wakes a thread.
        self._bound: list[Listener] = []
        self._left, self._until = _AT_ONCE, 0.0
        self._closing: list[Future[None]] = []
        self._incomplete: set[ObjectName] = set()
        self._retries: dict[ObjectName, _Retry] = {}
        # May have entries of Services that have no retry any more, or a later one.
        self._queue: list[tuple[float, ObjectName]] = []
        self._lines_left = _LOG_LINES
        self._lines_until = clock() + _LOG_PERIOD
        self._unlogged = 0

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The Problems of the ports that cannot be opened now."""
        return tuple(
            service.problem for _, service in sorted(self._services.items()) if service.problem
        )

    def incomplete_ports(self) -> int:
        """Count the Services with a missing listener. Any thread."""
        return len(self._incomplete)

    def listen_on(self, addresses: Collection[Address]) -> None:
        """Listen on exactly these addresses of the node. Idempotent."""
        if self._addresses == frozenset(addresses):
            return
        self._addresses = frozenset(addresses)
        self._close(self._take_surplus(self._services))
        self._open_all(self._services)

    def update(self, wanted: Mapping[ObjectName, ServiceHealthCheck]) -> None:
        """Serve exactly the Services in `wanted`. Idempotent."""
        gone = dict.fromkeys(self._services.keys() - wanted.keys())
        # Removed Services come first, because another Service may have their port now.
        self.change({**gone, **wanted})

    def change(self, changes: Mapping[ObjectName, ServiceHealthCheck | None]) -> None:
        """Open, change or (None) close the ports of some Services, as far as one call may.

        `retry` opens the rest. All closed ports are free before the first one is opened.
        """
        freed = self._take_unused(changes)
        wanted = {name: check for name, check in changes.items() if check is not None}
        for name, check in wanted.items():
            # One assignment of an immutable value, because the server's thread reads it unlocked.
            self._services.setdefault(name, OpenPort(check)).check = check
        self._close([*freed, *self._take_surplus(wanted)])
        self._open_all(wanted)

    def retry(self) -> bool:
        """Open some missing listeners whose time has come; return whether more are due now."""
        now = self._clock()
        if now >= self._lines_until:
            self._begin_log_period(now)
        if not self._queue or self._queue[0][0] > now:
            return False
        self._begin_part()
        while self._queue and self._queue[0][0] <= now and self._has_time():
            due, name = heapq.heappop(self._queue)
            retry = self._retries.get(name)
            if retry is not None and retry.due == due:
                self._open_listeners(name)
        self._serve_bound()
        return bool(self._queue) and self._queue[0][0] <= now

    def close(self) -> None:
        """Close all ports."""
        self.update({})

    # Closing wakes the server's thread, so one call closes all of a change.
    def _take_unused(
        self, changes: Mapping[ObjectName, ServiceHealthCheck | None]
    ) -> list[Listener]:
        freed: list[Listener] = []
        for name, check in changes.items():
            service = self._services.get(name)
            if service is None or (check and check.port == service.check.port):
                continue
            freed.extend(service.listeners.values())
            del self._services[name]
            self._incomplete.discard(name)
            self._retries.pop(name, None)
        return freed

    def _take_surplus(self, names: Iterable[ObjectName]) -> list[Listener]:
        return [
            listeners.pop(place)
            for service in map(self._services.__getitem__, names)
            for listeners in (service.listeners,)
            for place in listeners.keys() - self._places(service)
        ]

    def _close(self, listeners: Collection[Listener]) -> None:
        if listeners:
            self._closing.append(self._http.close(listeners))
            self._count -= sum(len(each.sockets) for each in listeners)

    def _is_closed(self) -> bool:
        """Return whether all closed ports are free; wait a moment for a few of them."""
        if self._closing:
            self._closing = list(wait(self._closing, _CLOSING_TIMEOUT).not_done)
        return not self._closing

    def _open_all(self, names: Iterable[ObjectName]) -> None:
        self._begin_part()
        for name in names:
            if self._has_time():
                self._open_listeners(name)
            else:
                # The next calls of `retry` open the rest.
                self._plan(name, self._clock())
        self._serve_bound()

    def _begin_part(self) -> None:
        """Begin to open ports, none while closed ones are not free."""
        self._left = _AT_ONCE if self._is_closed() else 0
        self._until = self._clock() + _PART

    def _has_time(self) -> bool:
        return self._left > 0 and self._clock() < self._until

    def _serve_bound(self) -> None:
        if self._bound:
            self._http.open(self._bound)
            self._bound = []

    def _open_listeners(self, name: ObjectName) -> None:
        """Open the missing listeners of a Service, and plan a retry for those that fail."""
        service = self._services[name]
        port = service.check.port
        if owner := owner_of(port, self._options.own_ports):
            self._set_problem(service, reserved_problem(name, port, owner))
            self._incomplete.add(name)
            return
        if not service.listeners:
            service.separate = False
        wanted = self._places(service)
        problem = self._open_missing(name, service, wanted)
        # A program has the port on one address; the others can still serve.
        if service.separate and (each_address := self._places(service)) != wanted:
            wanted = each_address
            problem = self._open_missing(name, service, wanted)
        self._set_problem(service, problem)
        if wanted <= service.listeners.keys():
            self._retries.pop(name, None)
            self._incomplete.discard(name)
        else:
            self._plan_retry(name)

    def _places(self, service: OpenPort) -> set[Place]:
        """Return where a Service listens: in those of its families that the node has."""
        together = frozenset() if service.separate else self._options.everywhere
        families = {each: family_of(each) for each in self._addresses}
        wanted = set(families.values()) & service.check.local_endpoints.keys()
        places = {
            Place((family,), address)
            for address, family in families.items()
            if family in wanted - together
        }
        if wanted & together:
            places.add(Place(tuple(sorted(wanted & together))))
        return places

    def _open_missing(
        self, name: ObjectName, service: OpenPort, wanted: Collection[Place]
    ) -> Problem | None:
        problem = None
        for place in sorted(
            wanted - service.listeners.keys(), key=lambda each: each.address or b""
        ):
            try:
                service.listeners[place] = self._open(name, service, place)
            except OSError as error:
                where = place.text(service.check.port)
                if error.errno == errno.EADDRNOTAVAIL:
                    # The Node object may list an address before the kernel has it: not a Problem.
                    log.debug("health check of %s: %s is not on this node yet", name, where)
                    continue
                service.separate |= place.address is None and error.errno == errno.EADDRINUSE
                problem = listen_problem(name, where, error)
        return problem

    def _open(self, name: ObjectName, service: OpenPort, place: Place) -> Listener:
        if self._count >= self._options.most:
            raise OSError(errno.EMFILE, "more listeners than the limit of open files leaves room")
        self._left -= 1
        room = min(_QUEUES_IN_ALL, self._options.most - _QUEUES_IN_ALL) - self._count
        sockets = place.bind(service.check.port, _QUEUES if room >= _QUEUES else 1)
        self._count += len(sockets)
        self._left -= len(sockets) - 1
        listener = self._http.prepare(
            sockets, lambda request: self._respond(name, service, request), LISTENER_NAME
        )
        self._bound.append(listener)
        return listener

    def _plan_retry(self, name: ObjectName) -> None:
        now = self._clock()
        retry = self._retries.get(name)
        if retry is None or retry.due <= now:
            backoff = retry.backoff if retry else Backoff(_FIRST_RETRY, _LONGEST_RETRY)
            self._plan(name, now + backoff.next(), backoff)

    def _plan(self, name: ObjectName, due: float, backoff: Backoff | None = None) -> None:
        self._incomplete.add(name)
        retry = self._retries.get(name)
        if retry is None or retry.due != due:
            heapq.heappush(self._queue, (due, name))
        self._retries[name] = _Retry(backoff or Backoff(_FIRST_RETRY, _LONGEST_RETRY), due)

    def _set_problem(self, service: OpenPort, problem: Problem | None) -> None:
        if problem is not None and problem != service.problem:
            self._report(problem)
            if self._lines_left:
                self._lines_left -= 1
                log.warning("%s", problem, extra=logs.about(problem.kind, problem.name))
            else:
                self._unlogged += 1
        service.problem = problem

    def _begin_log_period(self, now: float) -> None:
        if self._unlogged:
            log.warning("%d more problems of health-check node ports, not logged", self._unlogged)
        self._lines_left, self._unlogged = _LOG_LINES, 0
        self._lines_until = now + _LOG_PERIOD

    def _respond(self, name: ObjectName, service: OpenPort, request: Request) -> Response:
        endpoints = service.check.local_endpoints.get(request.family, 0)
        healthy = self._is_healthy()
        return Response(
            _BODY.format(
                namespace=_quoted(name.namespace),
                name=_quoted(name.name),
                endpoints=endpoints,
                healthy=_quoted(healthy),
            ).encode(),
            200 if endpoints and healthy else 503,
            "application/json",
            (
                ("X-Content-Type-Options", "nosniff"),
                # kube-proxy's header, by which a load balancer may weight nodes.
                ("X-Load-Balancing-Endpoint-Weight", str(endpoints)),
            ),
        )


def _order(place: Place) -> bytes:
    return place.address or b""


def _quoted(value: str | bool) -> str:
    return msgspec.json.encode(value).decode()
