"""Health-check node ports: load balancers check here whether this node has local endpoints.

A Service of type LoadBalancer with externalTrafficPolicy Local has such a port
(spec.healthCheckNodePort). Every path returns the same response, as in kube-proxy v1.36.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Collection, Mapping

import msgspec

from pyproxy.config.settings import ListenAddress
from pyproxy.errors import Problem, ProblemReason
from pyproxy.health.http import HttpThread, Listener, Response
from pyproxy.model.address import Address, Family, Port, family_of
from pyproxy.model.objects import ObjectName

log = logging.getLogger(__name__)

# A template, because no JSON library indents like kube-proxy and some probes compare the text.
_BODY = """{{
\t"service": {{
\t\t"namespace": {namespace},
\t\t"name": {name}
\t}},
\t"localEndpoints": {endpoints},
\t"serviceProxyHealthy": {healthy}
}}"""


class ServiceHealthCheck(msgspec.Struct, frozen=True):
    """The health-check port of one Service and its number of ready local endpoints by family.

    Each listener reports the number of its own address family, to which the load balancer would
    send. A sum would count each dual-stack pod twice.
    """

    port: Port
    local_endpoints: Mapping[Family, int]


class _OpenPort(msgspec.Struct):
    """The listeners of a Service by address; missing ones are retried."""

    check: ServiceHealthCheck
    # msgspec copies an empty default for each instance.
    listeners: dict[Address, Listener] = {}
    problem: Problem | None = None


class ServiceHealthServer:
    """The listeners of all Services with a health-check node port.

    All methods must be called from one thread, that of the agent. Responses are made in the thread
    of `http`. `is_healthy` returns whether the proxy itself works. `report` is called once for each
    new Problem.
    """

    def __init__(
        self,
        http: HttpThread,
        is_healthy: Callable[[], bool],
        report: Callable[[Problem], None],
    ) -> None:
        self._http = http
        self._is_healthy = is_healthy
        self._report = report
        self._addresses: frozenset[Address] = frozenset()
        self._services: dict[ObjectName, _OpenPort] = {}
        self._incomplete: set[ObjectName] = set()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The Problems of the ports that cannot be opened now."""
        services = (self._services[name] for name in sorted(self._incomplete))
        return tuple(service.problem for service in services if service.problem)

    @property
    def incomplete(self) -> bool:
        """Whether any listener is missing."""
        return bool(self._incomplete)

    def listen_on(self, addresses: Collection[Address]) -> None:
        """Listen on exactly these addresses of the node. Idempotent."""
        if self._addresses == frozenset(addresses):
            return
        self._addresses = frozenset(addresses)
        for name in self._services:
            self._open_listeners(name)

    def update(self, wanted: Mapping[ObjectName, ServiceHealthCheck]) -> None:
        """Serve exactly the Services in `wanted`. Idempotent."""
        gone = dict.fromkeys(self._services.keys() - wanted.keys())
        # Removed Services come first, because another Service may have their port now.
        self.change({**gone, **wanted})

    def change(self, changes: Mapping[ObjectName, ServiceHealthCheck | None]) -> None:
        """Open, change or (None) close the ports of some Services.

        All closed ports are free before the first one is opened.
        """
        self._close_unused(changes)
        for name, check in changes.items():
            if check is None:
                continue
            service = self._services.setdefault(name, _OpenPort(check))
            # One assignment of an immutable value, because the server's thread reads it unlocked.
            service.check = check
            self._open_listeners(name)

    def retry(self) -> None:
        """Try again to open missing listeners."""
        for name in sorted(self._incomplete):
            self._open_listeners(name)

    def close(self) -> None:
        """Close all ports."""
        self.update({})

    def _close_unused(self, changes: Mapping[ObjectName, ServiceHealthCheck | None]) -> None:
        freed: list[Listener] = []
        for name, check in changes.items():
            service = self._services.get(name)
            if service is None or (check and check.port == service.check.port):
                continue
            freed.extend(service.listeners.values())
            del self._services[name]
            self._incomplete.discard(name)
        if freed:
            self._http.close(freed)

    def _open_listeners(self, name: ObjectName) -> None:
        """Open and close the listeners of a Service: one for each node address of its families."""
        service = self._services[name]
        wanted = {
            address
            for address in self._addresses
            if family_of(address) in service.check.local_endpoints
        }
        surplus = service.listeners.keys() - wanted
        if surplus:
            self._http.close([service.listeners.pop(address) for address in surplus])
        problem = None
        for address in sorted(wanted - service.listeners.keys()):
            problem = self._open(name, service, address) or problem
        if problem and problem != service.problem:
            log.warning("%s", problem)
            self._report(problem)
        service.problem = problem
        if wanted - service.listeners.keys():
            self._incomplete.add(name)
        else:
            self._incomplete.discard(name)

    def _open(self, name: ObjectName, service: _OpenPort, address: Address) -> Problem | None:
        where = ListenAddress(address, service.check.port)
        try:
            service.listeners[address] = self._http.listen(
                where, lambda _path: self._respond(name, service, family_of(address))
            )
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                # The Node object may list an address before the kernel has it: not a Problem.
                log.debug("health check of %s: %s is not on this node yet", name, where)
                return None
            return Problem(
                kind="Service",
                name=str(name),
                field="spec.healthCheckNodePort",
                message=f"cannot listen on {where} ({error.strerror}): load balancers that "
                "check it send nothing to this node until the port is free",
                reason=ProblemReason.FAILED_TO_START_HEALTHCHECK,
            )
        return None

    def _respond(self, name: ObjectName, service: _OpenPort, family: Family) -> Response:
        endpoints = service.check.local_endpoints.get(family, 0)
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


def _quoted(value: str | bool) -> str:
    return msgspec.json.encode(value).decode()
