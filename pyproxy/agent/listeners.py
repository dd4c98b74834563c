"""Commit listeners: conntrack entries, health check ports, and counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyproxy.agent.cluster_state import ClusterState
from pyproxy.agent.commit import Commit
from pyproxy.dataplane.conntrack import Reconciler
from pyproxy.dataplane.interface import Dataplane
from pyproxy.health.check_port import ServiceHealthCheck
from pyproxy.health.service_health import ServiceHealthServer
from pyproxy.metrics.kernel import KernelMetrics
from pyproxy.metrics.syncs import SyncMetrics
from pyproxy.model.address import Address, Family
from pyproxy.model.objects import ObjectName, Service
from pyproxy.policy.routing import Scope, ServiceRouting, Use


class Flows:
    """Passes commits to the conntrack reconciler, which deletes entries of stale flows."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler

    def committed(self, commit: Commit, cluster_state: ClusterState) -> None:  # noqa: ARG002
        """Pass the routings on. Does not block: the reconciler has a thread of its own."""
        # Node addresses first: the reconciler resolves node ports of the routings against them.
        self._reconciler.node_addresses(commit.node_port_addresses)
        if commit.full:
            self._reconciler.full(filter(None, commit.written.values()), commit.rejected)
        else:
            self._reconciler.changed(commit.written)
            if commit.repair is not None:
                # While rules were missing, packets made entries that nothing translates.
                self._reconciler.recheck()


class HealthChecks:
    """Keeps the health check node ports in sync with the Services."""

    def __init__(self, checks: ServiceHealthServer, hostname: str) -> None:
        self._checks = checks
        self._hostname = hostname
        self._open: set[ObjectName] = set()

    def committed(self, commit: Commit, cluster_state: ClusterState) -> None:
        """Open, change and close the ports of the Services that changed."""
        self._checks.listen_on(commit.node_port_addresses)
        changes: dict[ObjectName, ServiceHealthCheck | None] = {}
        for name in commit.routings:
            service = cluster_state.services.get(name)
            if service is not None and service.health_check_port:
                changes[name] = self._check(service, cluster_state)
            elif name in self._open:
                changes[name] = None
        if commit.full:
            # A full commit names all Services, so any other one with an open port is gone.
            changes.update(dict.fromkeys(self._open - commit.routings.keys()))
        if changes:
            self._checks.change(changes)
            self._open |= changes.keys()
            self._open -= {name for name, check in changes.items() if check is None}

    def _check(self, service: Service, cluster_state: ClusterState) -> ServiceHealthCheck:
        # Sets of addresses, because two slices may list one endpoint while it moves between them.
        ready: dict[Family, set[Address]] = {family: set() for family in service.families}
        for each in cluster_state.slices_of(service.name):
            # kube-proxy has an endpoint per port of a slice, so none if the slice has no ports.
            if each.ports and each.family in ready:
                ready[each.family].update(
                    endpoint.address
                    for endpoint in each.endpoints
                    # Terminating endpoints do not count (KEP-1669), so that load balancers leave
                    # this node while such endpoints still serve.
                    if endpoint.ready and endpoint.node == self._hostname
                )
        counts = {family: len(addresses) for family, addresses in ready.items()}
        return ServiceHealthCheck(service.health_check_port, counts)


class LocalCounts:
    """Counts the Services whose policy is Local and that have no endpoint on this node."""

    def __init__(self, metrics: SyncMetrics) -> None:
        self._metrics = metrics
        self._without: dict[tuple[Family, bool], set[ObjectName]] = {
            (family, internal): set() for family in Family for internal in (True, False)
        }

    def committed(self, commit: Commit, cluster_state: ClusterState) -> None:  # noqa: ARG002
        """Count the changed Services again."""
        if commit.full:
            for names in self._without.values():
                names.clear()
        for name, routing in commit.routings.items():
            for names in self._without.values():
                names.discard(name)
            if routing is not None:
                for which in _without(routing):
                    self._without[which].add(name)
        for family in Family:
            self._metrics.no_local_endpoints(
                family,
                internal=len(self._without[family, True]),
                external=len(self._without[family, False]),
            )


def _without(routing: ServiceRouting) -> Iterator[tuple[Family, bool]]:
    """Yield the family of each frontend that drops packets, and whether it is internal."""
    for port in routing.ports:
        for frontend in port.frontends:
            if _drops(frontend.use, local=bool(port.local)):
                yield port.family, frontend.scope is Scope.CLUSTER_IP


def _drops(use: Use, *, local: bool) -> bool:
    return use is Use.DROP or (use is Use.SPLIT and not local)


class KernelCounts:
    """Counts the writes to the kernel, and their messages and bytes."""

    def __init__(self, metrics: KernelMetrics, dataplane: Dataplane[Any]) -> None:
        self._metrics = metrics
        self._dataplane = dataplane
        # The messages of `prepare` are checks and write nothing.
        self._messages, self._bytes = dataplane.messages_sent, dataplane.bytes_sent

    def committed(self, commit: Commit, cluster_state: ClusterState) -> None:  # noqa: ARG002
        """Add what was sent since the last commit."""
        messages, size = self._dataplane.messages_sent, self._dataplane.bytes_sent
        if messages != self._messages:
            self._metrics.written(messages - self._messages, size - self._bytes)
        self._messages, self._bytes = messages, size
