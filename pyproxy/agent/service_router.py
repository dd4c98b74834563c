"""Apply the policy to the Services that changed: from the state of the cluster to routings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable

import msgspec

from pyproxy import logs
from pyproxy.agent.cluster_state import ClusterState
from pyproxy.agent.problems import ProblemSource, ProblemTracker
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.errors import KernelError, Problem, ProblemReason
from pyproxy.model.address import Address, Backend
from pyproxy.model.objects import EndpointSlice, Kind, ObjectName, Service
from pyproxy.model.service_bounds import ServiceBounds
from pyproxy.policy.claims import cluster_claim
from pyproxy.policy.endpoints import merge_slices, route_plain, route_service
from pyproxy.policy.frontend_conflicts import Affected, Assignment, FrontendOwners
from pyproxy.policy.reserved_frontends import Reserved, ReservedFilter
from pyproxy.policy.routing import ServiceRouting, expand_node_ports, has_restricted_node_port
from pyproxy.policy.service_bounds import Bounded, is_far_within, within_bounds

log = logging.getLogger(__name__)

Routings = dict[ObjectName, ServiceRouting | None]
"""The routing of each Service; None for one that is gone."""


_API_SERVER = ObjectName("default", "kubernetes")
"""The Service of the API server, in a namespace where few may write."""


_UNAFFECTED = Affected()


class ServiceRouter:
    """Routes Services of one cluster state on the node `hostname`, and tracks their problems.

    Of a Service beyond the `bounds`, the rest is left out. With `divides_node_ports` a
    node port has one frontend for each of the node's addresses. With `offload` the connections of
    Services without session affinity may take the fast path.

    It remembers which Service owns which frontend, so every removed Service must be routed too.
    """

    def __init__(
        self,
        cluster_state: ClusterState,
        problems: ProblemTracker,
        hostname: str,
        bounds: ServiceBounds,
        *,
        divides_node_ports: bool = False,
        offload: bool = False,
    ) -> None:
        self._cluster_state = cluster_state
        self._problems = problems
        self._hostname = hostname
        self._bounds = bounds
        self.divides_node_ports = divides_node_ports
        self._offload = offload
        self._node_addresses: frozenset[Address] = frozenset()
        self._node = NodeRouting()
        self._owners = FrontendOwners()
        self._filter = ReservedFilter(Reserved())
        self._with_problems: set[ObjectName] = set()
        # Those whose node ports have, or lack, a frontend for each of the node's addresses.
        self._divided: set[ObjectName] = set()

    def route(
        self,
        names: Iterable[ObjectName],
        node: NodeRouting,
        routed: Callable[[ServiceRouting], None] | None = None,
    ) -> Routings:
        """Return the routings of these Services, and of those that gain or lose a frontend by them.

        One Service with a new cluster IP may take it from any number of others, which are left for
        the next steps. `routed` is called with each routing at once; a later Service may change it.
        """
        if node.reserved is not self._filter.reserved:
            self._filter = ReservedFilter(node.reserved)
        routings: Routings = {}
        queue = [*names, *self._on_changed_addresses(node)]
        # The queue grows meanwhile. The loop ends, because routing an affected Service again with
        # the same frontends affects no further one.
        for name in queue:
            affected, routing = self._route(name, node)
            routings[name] = routing
            if routed is not None and routing is not None:
                routed(routing)
            if affected.now or affected.later:  # `if affected` would be a call for each Service
                # The caller takes all of these routings as the last ones, so an outdated one is
                # replaced here and not in a later step.
                outdated = affected.later & routings.keys()
                queue.extend(affected.now | outdated)
                self._cluster_state.route_again(affected.later - outdated)
        return routings

    def concerned_by(self, old: NodeRouting, new: NodeRouting) -> frozenset[ObjectName]:
        """Return the Services whose routings may differ between two routings of the node.

        Their families and pod networks are the same. Those that `route` adds to the first ones that
        it routes on the changed node are not included. Takes time in proportion to all Services.
        """
        state = self._cluster_state
        moved = frozenset(old.node_port_addresses) ^ frozenset(new.node_port_addresses)
        changed = moved | new.reserved.changed_addresses(old.reserved)
        found = set(state.users_of(changed)) if changed else set()
        if moved and self.divides_node_ports:
            found.update(state.with_node_ports())
        elif moved:
            found |= self._divided
            # A program listens at one of these addresses alone, so that node port will be divided.
            ports = {own.port for own in new.reserved.own_ports if own.address in moved}
            if ports:
                found.update(state.with_node_ports(ports))
        return frozenset(found)

    def set_rejected(self, name: ObjectName, error: KernelError | None) -> None:
        """Record that the kernel rejected a Service, or with None that it took it."""
        self._found(ProblemSource.KERNEL, name, () if error is None else (_rejected(name, error),))

    def _on_changed_addresses(self, node: NodeRouting) -> Iterable[ObjectName]:
        """Return the Services that a node port may precede now, or no longer does.

        They are routed in one step with that node port's Service.
        """
        if node is self._node:
            return ()
        before, self._node_addresses = self._node_addresses, frozenset(node.node_port_addresses)
        self._node = node
        return self._owners.at(before ^ self._node_addresses)

    def _route(self, name: ObjectName, node: NodeRouting) -> tuple[Affected, ServiceRouting | None]:
        service = self._cluster_state.services.get(name)
        if service is None:
            for source in (ProblemSource.ROUTING, ProblemSource.CONFLICT, ProblemSource.KERNEL):
                self._found(source, name, ())
            self._with_problems.discard(name)
            self._divided.discard(name)
            return self._owners.remove(name), None
        try:
            slices = self._cluster_state.slices_of(name)
            routing = self._route_plain(service, slices)
            if routing is not None:
                return _UNAFFECTED, routing
            bounded = within_bounds(service, slices, self._hostname, self._bounds)
            assigned = self._assign(bounded, node)
        except Exception as error:
            # A bug must affect this Service alone. An agent that exits here would exit at every
            # start, and the node would keep an old state of all Services.
            about = logs.about(Kind.SERVICE.value, name)
            log.exception("cannot route Service %s: this is a bug in pyproxy", name, extra=about)
            self._found(ProblemSource.ROUTING, name, (_failed(name, error),))
            return self._owners.remove(name), None
        # Most Services have no problem now and had none before; `in` would hash the name.
        known = self._with_problems
        if assigned.problems or bounded.problems or (known and name in known):
            self._found(ProblemSource.ROUTING, name, bounded.problems)
            self._found(ProblemSource.CONFLICT, name, assigned.problems)
        return assigned.affected, assigned.routing

    def _route_plain(
        self, service: Service, slices: Collection[EndpointSlice]
    ) -> ServiceRouting | None:
        """Return the routing of a Service as most are: one frontend, which no other Service claims.

        Return None if the Service may be another one. It is then routed by the general code, whose
        result for this one would be the same.
        """
        if len(slices) != 1 or service.health_check_port:
            return None
        (part,) = slices
        routing = route_plain(service, part, self._hostname)
        if routing is None or len(routing.ports[0].frontends) != 1:
            return None
        name, known = service.name, self._with_problems
        if (
            (known and name in known)
            or not is_far_within(service, slices, self._bounds)
            or self._filter.concerns(service)
            or self._filter.endpoints(slices)[0] is not slices
            or name == _API_SERVER
            or not self._owners.assign_alone(cluster_claim(service, routing.ports[0]))
        ):
            return None
        if self._divided:
            self._divided.discard(name)
        return self._with_offload(routing) if self._offload else routing

    def _with_offload(self, routing: ServiceRouting) -> ServiceRouting:
        if routing.affinity_timeout:
            return routing
        return msgspec.structs.replace(routing, offload=True)

    def _assign(self, bounded: Bounded, node: NodeRouting) -> Assignment:
        service = bounded.service
        slices, unusable = self._filter.endpoints(bounded.slices)
        routing = route_service(service, slices, self._cluster_state.node, self._hostname)
        if self._offload:
            routing = self._with_offload(routing)
        routing, reserved = self._filter.frontends(service, routing, node.node_port_addresses)
        assigned = self._owners.assign(
            service,
            routing,
            node_addresses=self._node_addresses,
            api_servers=self._endpoints_of(service) if service.name == _API_SERVER else (),
        )
        is_divided = self.divides_node_ports or (
            bool(service.source_ranges)
            and has_restricted_node_port(assigned.routing, self._node_addresses)
        )
        if is_divided or reserved:
            self._divided.add(service.name)
        elif self._divided:
            self._divided.discard(service.name)
        if is_divided:
            expanded = expand_node_ports(assigned.routing, node.node_port_addresses)
            assigned = msgspec.structs.replace(assigned, routing=expanded)
        if not (unusable or reserved):
            return assigned
        problems = unusable + reserved + assigned.problems
        return msgspec.structs.replace(assigned, problems=problems)

    def _endpoints_of(self, service: Service) -> set[Backend]:
        slices = self._cluster_state.slices_of(service.name)
        merged = merge_slices(slices, self._hostname)
        return {backend for endpoints in merged.values() for backend in endpoints}

    def _found(
        self, source: ProblemSource, name: ObjectName, problems: tuple[Problem, ...]
    ) -> None:
        if problems:
            self._with_problems.add(name)
        elif name not in self._with_problems:
            return
        self._problems.found(source, (Kind.SERVICE.value, str(name)), problems)


def _failed(name: ObjectName, error: Exception) -> Problem:
    return Problem(
        Kind.SERVICE.value,
        str(name),
        "spec",
        f"a bug in pyproxy ({type(error).__name__}: {error}) keeps it from being proxied until it "
        "changes: report this with the object",
    )


def _rejected(name: ObjectName, error: KernelError) -> Problem:
    return Problem(
        Kind.SERVICE.value,
        str(name),
        "spec",
        f"the kernel rejected it ({error}) and keeps its previous state until the Service changes",
        ProblemReason.REJECTED_BY_KERNEL,
    )
