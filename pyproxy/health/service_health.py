"""Health-check node ports: where a load balancer asks whether this node has endpoints to send to.

A Service of type LoadBalancer with externalTrafficPolicy Local names the port
(spec.healthCheckNodePort); any path is answered, in kube-proxy's form (v1.36).
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

# Written out, for no JSON library indents as kube-proxy does, and some probes compare text.
_BODY = """{{
\t"service": {{
\t\t"namespace": {namespace},
\t\t"name": {name}
\t}},
\t"localEndpoints": {endpoints},
\t"serviceProxyHealthy": {healthy}
}}"""


class ServiceHealthCheck(msgspec.Struct, frozen=True):
    """What one Service's port tells.

    `local_endpoints` are the numbers of those on this node that are ready, by family. Each listener
    tells that of its own address's family: that is whom a load balancer that came this way sends
    to, and a pod with an address of each family would count twice otherwise.
    """

    port: Port
    local_endpoints: Mapping[Family, int]


class _Open(msgspec.Struct):
    """A Service's listeners, by their address; those missing are tried again."""

    check: ServiceHealthCheck
    listeners: dict[Address, Listener] = {}
    problem: Problem | None = None


class ServiceHealthServer:
    """The listeners of all Services that have a health-check node port.

    For one thread, the agent's; answers come from that of `http`. `is_healthy` says whether the
    proxy itself works. `report` is called once for each new Problem.
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
        self._services: dict[ObjectName, _Open] = {}
        self._incomplete: set[ObjectName] = set()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The ports that cannot be listened on now."""
        services = (self._services[name] for name in sorted(self._incomplete))
        return tuple(service.problem for service in services if service.problem)

    @property
    def incomplete(self) -> bool:
        """Whether `retry` has anything to try."""
        return bool(self._incomplete)

    def listen_on(self, addresses: Collection[Address]) -> None:
        """Listen on these addresses of the node, and no others, from now on."""
        if self._addresses == frozenset(addresses):
            return
        self._addresses = frozenset(addresses)
        for name in self._services:
            self._arrange(name)

    def update(self, wanted: Mapping[ObjectName, ServiceHealthCheck]) -> None:
        """Make `wanted` all there is."""
        gone = dict.fromkeys(self._services.keys() - wanted.keys())
        # What goes, goes first: its port may be another's already.
        self.change({**gone, **wanted})

    def change(self, changes: Mapping[ObjectName, ServiceHealthCheck | None]) -> None:
        """Open, change or, for None, close the ports of some Services; the rest stay as they are.

        The ports that are let go are free before any is opened.
        """
        self._let_go(changes)
        for name, check in changes.items():
            if check is None:
                continue
            service = self._services.setdefault(name, _Open(check))
            # Swapped whole, so that the server's thread sees the one or the other.
            service.check = check
            self._arrange(name)

    def retry(self) -> None:
        """Try again what could not be opened."""
        for name in sorted(self._incomplete):
            self._arrange(name)

    def close(self) -> None:
        """Close all ports."""
        self.update({})

    def _let_go(self, changes: Mapping[ObjectName, ServiceHealthCheck | None]) -> None:
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

    def _arrange(self, name: ObjectName) -> None:
        """Bring a Service's listeners in line with the node's addresses and its families."""
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

    def _open(self, name: ObjectName, service: _Open, address: Address) -> Problem | None:
        where = ListenAddress(address, service.check.port)
        try:
            service.listeners[address] = self._http.listen(
                where, lambda _path: self._answer(name, service, family_of(address))
            )
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                # The Node object may name an address before the kernel has it: nobody's mistake.
                log.debug("health check of %s: %s is not on this node yet", name, where)
                return None
            return Problem(
                kind="Service",
                name=str(name),
                field="spec.healthCheckNodePort",
                message=f"cannot listen on {where} ({error.strerror}): load balancers that ask "
                "there leave this node out until the port is free",
                reason=ProblemReason.FAILED_TO_START_HEALTHCHECK,
            )
        return None

    def _answer(self, name: ObjectName, service: _Open, family: Family) -> Response:
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
                ("X-Load-Balancing-Endpoint-Weight", str(endpoints)),
            ),
        )


def _quoted(value: str | bool) -> str:
    return msgspec.json.encode(value).decode()
