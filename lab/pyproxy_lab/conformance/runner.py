"""Run cases: write objects to the API server, send packets, compare the results.

On a kernel without IPv6, packets to IPv6 addresses are left out.
"""

from __future__ import annotations

import errno
import http.client
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from urllib.parse import urlsplit

from pyproxy.errors import UsageError
from pyproxy.model.destination import parse_destination
from pyproxy_lab.client import ENDPOINT_SLICES, SERVICES, ApiClient, JsonObject, collection
from pyproxy_lab.conformance.cases import Applied, Case, Get, Probe, Step
from pyproxy_lab.conformance.connections import Connections
from pyproxy_lab.conformance.slices import slices_of
from pyproxy_lab.conformance.verdict import describe, holds
from pyproxy_lab.modes import LabMode
from pyproxy_lab.namespace import HAS_IPV6, LabError, Namespace
from pyproxy_lab.network import Network
from pyproxy_lab.probe import ENOUGH_DROPPED, Outcome, probe
from pyproxy_lab.sync_barrier import Alive, SyncBarrier

NAMESPACE = "conformance"
TRIES_FOR_EACH = 8
"""Tries for each endpoint, and for one that must not be reached, where one is chosen at random.

Up to four right ones, or a wrong one beside them, are missed in less than 1 of 10,000 probes.
"""

TRIES_IN_TURN = 8
"""Enough where endpoints are taken in turn, as with IPVS' default scheduler."""

TRIES_TO_FAIL = 4
HTTP_TIMEOUT = 2.0
SECOND_SYN = 2.0
"""Seconds in which a client has sent its second SYN, one second after the first.

An ICMP error that arrives while connect() sends the SYN does not end it. Between namespaces of one
machine that is so for the first SYN (LockDroppedIcmps of nstat), and not for the second.
"""

_BETWEEN_TRIES = 0.05

FIRST = Case(
    name="the agent serves its first Service",
    steps=(
        Step(
            apply=(
                Applied(
                    metadata={"name": "first"},
                    spec={"ports": [{"port": 80, "targetPort": 8080}], "clusterIP": "10.96.1.1"},
                    endpoints=("b1",),
                ),
            ),
            probe=(Probe(source_name="a2", to="10.96.1.1:80", reach=("b1",)),),
        ),
    ),
)
"""Run this first: without an agent, many probes for refused connections would hold too."""


Check = Callable[[Probe, Outcome], str]
"""Returns an objection to a probe that holds, empty for none."""


class Runner:
    """Runs cases one after the other; each probe must hold within `settle` seconds.

    `check` is called after each probe that holds, and must agree within that time too. Probes wait
    until `barrier` shows that the agent has programmed all objects. Without it, a probe that held
    before the change may be made too early. A probe that must fail waits at most
    `longest_silence` seconds.
    """

    def __init__(
        self,
        client: ApiClient,
        network: Network,
        mode: LabMode,
        settle: float = 8.0,
        check: Check | None = None,
        barrier: SyncBarrier | None = None,
    ) -> None:
        self.longest_silence = math.inf
        self.load_balancer_class = ""
        """The class of load balancers without one: another program's, which grants no address."""

        self.rejects_by_icmp = False
        """Whether the proxy rejects TCP by ICMP errors, as kube-proxy does, and not by resets."""

        self._client = client
        self._network = network
        self._mode = mode.proxy_mode.value
        self._in_turn = mode.in_turn
        self._settle = settle
        self._check = check
        self._barrier = barrier
        self._connections = Connections()
        self._made: dict[str, str] = {}  # an object's path, and the Service that it belongs to
        client.ensure("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})

    def applies(self, case: Case) -> bool:
        """Return whether a case is for this mode."""
        return self._mode not in case.without

    def run(self, case: Case) -> tuple[str, ...]:
        """Run a case, delete its objects, and return a line for each probe that did not hold.

        Raises LabError, and UsageError where the case itself is wrong.
        """
        try:
            failures: list[str] = []
            for number, step in enumerate(case.steps, 1):
                failures += (f"step {number}: {text}" for text in self._step(step))
            return tuple(failures)
        finally:
            self._connections.close()
            for path in list(self._made):
                self._delete(path)

    def _step(self, step: Step) -> Iterator[str]:
        for name in step.delete:
            for path in [path for path, owner in self._made.items() if owner == name]:
                self._delete(path)
        for applied in step.apply:
            self._apply(applied)
        if self._barrier and (step.delete or step.apply):
            self._barrier.wait()
        time.sleep(step.sleep)
        for wanted in step.probe:
            if self._mode not in wanted.without:
                yield from self._probe(wanted)
        for get in step.http:
            yield from self._get(get)
        yield from self._connections.broken()
        for hold in step.hold:
            namespace, _ = self._member(hold.source_name)
            for to in filter(_can_be_sent, hold.to):
                try:
                    self._connections.hold(namespace, hold.source_name, to)
                except OSError as error:
                    yield f"{hold.source_name} -> {to}: wanted a connection; saw {error}"

    def _apply(self, applied: Applied) -> None:
        service: JsonObject = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": applied.metadata | {"namespace": NAMESPACE},
            "spec": self._spec(applied),
        }
        self._put(SERVICES, service, applied.name)
        if applied.status is not None:
            path = f"{collection(NAMESPACE, SERVICES)}/{applied.name}/status"
            self._client.patch(path, {"status": applied.status})
        slices = list(slices_of(applied, self._network.topology, NAMESPACE))
        folder = collection(NAMESPACE, ENDPOINT_SLICES)
        wanted = {f"{folder}/{obj['metadata']['name']}" for obj in slices}
        for path in [path for path, owner in self._made.items() if owner == applied.name]:
            if path.startswith(folder) and path not in wanted:
                self._delete(path)
        for obj in slices:
            self._put(ENDPOINT_SLICES, obj, applied.name)

    def _spec(self, applied: Applied) -> JsonObject:
        spec = applied.spec
        if self.load_balancer_class and spec.get("type") == "LoadBalancer":
            return {"loadBalancerClass": self.load_balancer_class, **spec}
        return spec

    def _put(self, kind: str, obj: JsonObject, owner: str) -> None:
        folder = collection(NAMESPACE, kind)
        path = f"{folder}/{obj['metadata']['name']}"
        if path in self._made:
            self._client.replace(path, obj)
        else:
            self._client.create(folder, obj)
            self._made[path] = owner

    def _delete(self, path: str) -> None:
        self._client.delete(path)
        del self._made[path]

    def _probe(self, wanted: Probe) -> Iterator[str]:
        tries = wanted.tries or self._tries(wanted)
        if not _can_be_sent(wanted.to):
            return
        target = parse_destination(wanted.to)
        silence = self.longest_silence if wanted.reach is None else math.inf
        timeout = min(wanted.timeout, silence)
        if self.rejects_by_icmp and wanted.expect == "refused":
            timeout = max(timeout, SECOND_SYN)
        # Packets that must not come are awaited together, unless they need the same port.
        at_once = ENOUGH_DROPPED if wanted.reach is None and not wanted.sport else 1
        once = partial(
            probe,
            target,
            tries=tries,
            timeout=timeout,
            source_port=wanted.sport,
            at_once=at_once,
        )
        namespace, own = self._member(wanted.source_name)

        def attempt() -> str:
            try:
                seen: Outcome = namespace.call(once)
            except OSError as error:
                # An association of SCTP has its port until the peer has agreed to end it.
                if not wanted.sport or error.errno not in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
                    raise
                return str(error)
            if not holds(wanted, seen, own):
                return str(seen)
            return self._check(wanted, seen) if self._check else ""

        if seen := self._settled(attempt):
            arrow = f"{wanted.source_name} -> {wanted.to}"
            yield f"{arrow}: wanted {describe(wanted)}; saw {seen}"

    def _tries(self, wanted: Probe) -> int:
        if wanted.reach is None:
            return TRIES_TO_FAIL
        if self._in_turn:
            return TRIES_IN_TURN
        pods = 1 if wanted.reach == "one" else len(wanted.reach)
        return TRIES_FOR_EACH * (pods + 1)

    def _get(self, wanted: Get) -> Iterator[str]:
        if not _can_be_sent(urlsplit(wanted.url).netloc):
            return
        namespace, _ = self._member(wanted.source_name)

        def attempt() -> str:
            status, body = namespace.call(partial(_http_get, wanted.url))
            squeezed = body.replace(" ", "")
            good = status == wanted.status and all(part in squeezed for part in wanted.contains)
            return "" if good else f"{status} {body[:200]}"

        if seen := self._settled(attempt):
            parts = " ".join([str(wanted.status), *wanted.contains])
            yield f"GET {wanted.url} from {wanted.source_name}: wanted {parts}; saw {seen}"

    def _member(self, name: str) -> tuple[Namespace, frozenset[str]]:
        """Return the namespace and the addresses of a client."""
        try:
            return self._network.namespace(name), self._network.addresses(name)
        except KeyError as error:
            raise UsageError(f"from: {name}: use a pod, a node (na, nb) or ext") from error

    def _settled(self, attempt: Callable[[], str]) -> str:
        """Repeat until an attempt succeeds, and return the last one's objection, empty for none."""
        deadline = time.monotonic() + self._settle
        while seen := attempt():
            if time.monotonic() > deadline:
                return seen
            time.sleep(_BETWEEN_TRIES)
        return ""


def await_agent(runner: Runner, agent: Alive, patience: float = 60.0) -> None:
    """Wait until an agent serves at all. Raises LabError when it ends, or after `patience` s."""
    deadline = time.monotonic() + patience
    while failures := runner.run(FIRST):
        agent.require_alive()
        if time.monotonic() > deadline:
            raise LabError(f"the agent serves nothing after {patience:.0f} s: {failures[0]}")


def _can_be_sent(to: str) -> bool:
    """Return whether this kernel has the family of `ADDRESS:PORT`."""
    return HAS_IPV6 or not to.startswith("[")


def _http_get(url: str) -> tuple[int, str]:
    """GET in the namespace that this is called in; status 0 and the error without a response."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port or 80, timeout=HTTP_TIMEOUT
    )
    try:
        connection.request("GET", parts.path or "/")
        reply = connection.getresponse()
        return reply.status, reply.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, f"{type(error).__name__}: {error}"
    finally:
        connection.close()
