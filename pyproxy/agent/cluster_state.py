"""The last known state of the cluster, and the Services that changed since the last sync."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Set
from typing import cast

import msgspec

from pyproxy.agent.pending import Arrival, Change, PendingChanges
from pyproxy.errors import Problem
from pyproxy.model.address import Address, Port
from pyproxy.model.events import Delete, Event, InvalidObject, Synced, Upsert
from pyproxy.model.objects import DeferredSlice, EndpointSlice, Kind, Node, ObjectName, Service

# Global names, because an attribute lookup on an enum is slow.
_SERVICE, _SLICE, _NODE = Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE

_Slices = dict[ObjectName, EndpointSlice]
_HeldSlices = dict[ObjectName, EndpointSlice | DeferredSlice]


class ClusterState:
    """Services, EndpointSlices and the Node by the last events, joined by Service.

    `pending` are the changes that are not yet routed. A Service of more than `large_rows` rows, and
    one in `costly`, is pending as a large one. `node_addresses` is the number of frontends that
    a node port has in each family.

    `decoded` is called with each deferred slice that has a problem, or with what makes it
    undecodable, as soon as it is decoded: that is before any later event of the same slice.
    """

    def __init__(
        self,
        large_rows: int = sys.maxsize,
        decoded: Callable[[Upsert | InvalidObject], None] = lambda _: None,
    ) -> None:
        self.services: dict[ObjectName, Service] = {}
        self._slices: _HeldSlices = {}
        self.node: Node | None = None
        self._by_service: dict[ObjectName, _HeldSlices] = {}
        self._decoded = decoded
        # Whether slices may be deferred.
        self._defers = False
        self._synced: set[Kind] = set()
        self.has_synced = False
        """Whether all lists have been read once, so that a missing object does not exist."""
        self._endpoints: dict[ObjectName, int] = {}
        self._large_rows = large_rows
        self.node_addresses = 1
        self.costly: set[ObjectName] = set()
        self.pending = PendingChanges(self._is_large)
        # Events of the first lists, which make a sync of all Services due.
        self._initial = Change()

    @property
    def slices(self) -> _Slices:
        """All slices. Decodes the deferred ones."""
        if self._defers:
            for service in [*self._by_service]:
                self._complete(service, self._by_service[service])
            self._defers = False
        return cast("_Slices", self._slices)

    def slices_of(self, service: ObjectName) -> Collection[EndpointSlice]:
        """Return the slices that name a Service, in no order. Decodes the deferred ones."""
        found = self._by_service.get(service)
        if not found:
            return ()
        if self._defers:
            self._complete(service, found)
        return cast("_Slices", found).values()

    def settle(self) -> None:
        """Decode all slices that are deferred, as after the first sync."""
        if self._defers:
            _ = self.slices

    def _complete(self, service: ObjectName, held: _HeldSlices) -> None:
        """Decode the deferred slices of a Service; one that cannot be decoded does not exist."""
        for name, part in [*held.items()]:
            if not isinstance(part, DeferredSlice):
                continue
            new, rows = part.complete(), 0
            if isinstance(new, Problem):
                del held[name], self._slices[name]
                self._decoded(InvalidObject(new))
            else:
                held[name] = self._slices[name] = new
                rows = len(new.endpoints)
                if new.problems:
                    self._decoded(Upsert(new))
            if rows != len(part.entries):
                self._endpoints[service] += rows - len(part.entries)
        if not held:
            del self._by_service[service], self._endpoints[service]

    def uid(self, kind: str, name: str) -> str:
        """Return the uid of a Service or the Node by its name in text, empty if unknown."""
        if kind == Kind.SERVICE.value:
            namespace, _, last = name.rpartition("/")
            service = self.services.get(ObjectName(namespace, last))
            return service.uid if service is not None else ""
        if kind == Kind.NODE.value and self.node is not None and self.node.name == name:
            return self.node.uid
        return ""

    def estimate(self, name: ObjectName) -> int:
        """Return about the most rows that a Service may have, in constant time."""
        service = self.services.get(name)
        if service is None:
            return 0
        balanced, ports = len(service.load_balancer_ips), len(service.ports)
        addresses = len(service.cluster_ips) + balanced + len(service.external_ips)
        if service.ports and service.ports[-1].node_port:
            addresses += self.node_addresses
        # A row for each endpoint, and one more with session affinity.
        endpoints = self._endpoints.get(name, 0) * (2 if service.affinity_timeout else 1)
        ranges = balanced * len(service.source_ranges)
        return ports * (addresses * (1 + endpoints) + ranges)

    def route_again(self, names: Iterable[ObjectName]) -> None:
        """Have Services routed again, although they have not changed."""
        self.pending.reroute(names)

    def with_node_ports(self, among: Collection[Port] | None = None) -> Iterator[ObjectName]:
        """Yield the Services that have a node port, or one of these."""
        for name, service in self.services.items():
            for port in service.ports:
                if port.node_port and (among is None or port.node_port in among):
                    yield name
                    break

    def sharing_services(self) -> Set[ObjectName]:
        """Return the Services with a cluster IP that another Service has too: mostly none."""
        services = self.services.values()
        # First a comparison of numbers, because naming the owners takes several times as long.
        ips: set[Address] = set()
        count = 0
        for service in services:
            ips.update(service.cluster_ips)
            count += len(service.cluster_ips)
        if len(ips) == count:
            return frozenset()
        owners: dict[Address, ObjectName] = {}
        sharing: set[ObjectName] = set()
        for service in services:
            for ip in service.cluster_ips:
                if (owner := owners.setdefault(ip, service.name)) is not service.name:
                    sharing.update((service.name, owner))
        return sharing

    def users_of(self, addresses: Collection[Address]) -> Iterator[ObjectName]:
        """Yield the Services that have one of these addresses, or an endpoint with one.

        Takes time in proportion to all Services and endpoints.
        """
        for name, service in self.services.items():
            own = (service.cluster_ips, service.external_ips, service.load_balancer_ips)
            if any(address in addresses for each in own for address in each):
                yield name
        for each in self.slices.values():
            if any(endpoint.address in addresses for endpoint in each.endpoints):
                yield each.service

    def handle_event(self, event: Event, now: float) -> Kind | None:
        """Apply one event at a monotonic time; return the kind of the changed object, if any."""
        # No match statement, which tests the attributes of each pattern: lists have many events.
        if isinstance(event, Upsert):
            obj = event.obj
            if isinstance(obj, Service):
                kind, name, change = _SERVICE, obj.name, self._put_service(obj)
            elif isinstance(obj, Node):
                kind, name, change = _NODE, ObjectName("", obj.name), self._put_node(obj)
            else:
                kind, name, change = _SLICE, obj.name, self._put_slice(obj)
        elif isinstance(event, Delete):
            kind, name = event.kind, event.name
            change = self._drop(kind, name)
        else:
            if isinstance(event, Synced):
                self._sync(event)
            return None
        if change is None:
            return None
        # The first lists, which one sync writes, are not timed one by one.
        if change is not self._initial:
            # A source that does not time decoding has put the object into the inbox at once.
            decoded_at = event.decoded_at or event.read_at
            change.arrived(Arrival(kind, name, event.read_at, decoded_at, now))
        return kind

    def _put_service(self, service: Service) -> Change | None:
        # A list after a lost watch repeats all objects, and equal ones must cause no sync.
        if self.services.get(service.name) == service:
            return None
        self.services[service.name] = service
        return self._changed(service.name)

    def _put_slice(self, new: EndpointSlice | DeferredSlice) -> Change | None:
        head = _head(new)
        name, service = head.name, head.service
        old = self._slices.get(name)
        # The label kubernetes.io/service-name of a slice can be changed to another Service.
        if old is not None:
            if old == new:
                return None
            self._endpoints[_head(old).service] -= _count(old)
            if _head(old).service != service:
                self._unlink(_head(old))
        self._slices[name] = new
        self._defers |= new is not head
        siblings = self._by_service.get(service)
        if siblings is None:
            self._by_service[service] = {name: new}
        else:
            siblings[name] = new
        self._endpoints[service] = self._endpoints.get(service, 0) + _count(new)
        change = self._changed(service)
        # Slices of the first lists changed before the agent started; kube-proxy skips them too. A
        # slice that changes without a new time changed for another reason, perhaps hours later.
        repeats = old is not None and _head(old).triggered == head.triggered
        if head.triggered and self.has_synced and not repeats:
            change.trigger(head.family, head.triggered)
        return change

    def _put_node(self, node: Node) -> Change | None:
        # kubelet updates the Node's status every few minutes, in fields that are not decoded.
        if self.node == node:
            return None
        self.node = node
        # The zone and the node port addresses are part of the routing of any Service.
        return self.pending.node_changed(self.services) if self.has_synced else self._initial

    def _drop(self, kind: Kind, name: ObjectName) -> Change | None:
        if kind is Kind.SERVICE:
            if self.services.pop(name, None) is None:
                return None
            return self._changed(name)
        if kind is Kind.ENDPOINT_SLICE:
            old = self._slices.pop(name, None)
            if old is None:
                return None
            head = _head(old)
            self._endpoints[head.service] -= _count(old)
            self._unlink(head)
            return self._changed(head.service)
        if self.node is None or self.node.name != name.name:
            return None
        # A deleted and recreated Node is the same machine, so its addresses stay until the new
        # object has others. Load balancers must not send clients here meanwhile.
        self.node = msgspec.structs.replace(self.node, eligible=False)
        # No routing depends on it, so nothing waits for a sync.
        return Change()

    def _unlink(self, old: EndpointSlice) -> None:
        rest = self._by_service[old.service]
        del rest[old.name]
        if not rest:
            del self._by_service[old.service]
            del self._endpoints[old.service]
        self._changed(old.service)

    def _sync(self, event: Synced) -> None:
        # A list has no events for objects that were deleted while no watch was open. kube-proxy
        # handles a Node that is missing from a list as deleted too.
        known: Iterable[ObjectName] = ()
        if event.kind is Kind.SERVICE:
            known = self.services
        elif event.kind is Kind.ENDPOINT_SLICE:
            known = self._slices
        elif self.node is not None:
            known = (ObjectName("", self.node.name),)
        # A list first, because _drop changes the mapping.
        for name in [name for name in known if name not in event.names]:
            self._drop(event.kind, name)
        self._synced.add(event.kind)
        self.has_synced = len(self._synced) == len(Kind)

    def _changed(self, name: ObjectName) -> Change:
        """Queue a Service; return its change to fill in."""
        return self.pending.add(name) if self.has_synced else self._initial

    def _is_large(self, name: ObjectName) -> bool:
        return name in self.costly or self.estimate(name) > self._large_rows


def _head(part: EndpointSlice | DeferredSlice) -> EndpointSlice:
    """Return a slice, or all of a deferred one but its endpoints."""
    return part.head if isinstance(part, DeferredSlice) else part


def _count(part: EndpointSlice | DeferredSlice) -> int:
    """Count the endpoints of a slice; invalid ones too while it is deferred."""
    return len(part.entries if isinstance(part, DeferredSlice) else part.endpoints)


def has_cluster_ips_only(service: Service) -> bool:
    """Return whether a Service has no frontend and no port but those of its cluster IPs.

    A cluster IP is the strongest claim, so no Service without it can change these frontends.
    """
    if service.external_ips or service.load_balancer_ips or service.health_check_port:
        return False
    for port in service.ports:  # noqa: SIM110 (a generator takes twice as long)
        if port.node_port:
            return False
    return True
