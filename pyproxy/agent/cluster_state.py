"""The last known state of the cluster, and the Services that changed since the last sync."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import msgspec

from pyproxy.model.address import Address
from pyproxy.model.events import Delete, Event, InvalidObject, Synced, Upsert
from pyproxy.model.objects import EndpointSlice, Kind, Node, ObjectName, Service


class PendingChanges(msgspec.Struct):
    """The Services to route in the next sync; all of them with `everything`.

    `read_at` are the monotonic times at which the changes were read. `triggered` are the changed
    slices that have a trigger time, in seconds since the epoch.
    """

    services: set[ObjectName]
    everything: bool = False
    read_at: list[float] = msgspec.field(default_factory=list)
    triggered: list[EndpointSlice] = msgspec.field(default_factory=list)

    def __bool__(self) -> bool:
        return self.everything or bool(self.services)


class ClusterState:
    """Services, EndpointSlices and the Node by the last events, joined by Service."""

    def __init__(self) -> None:
        self.services: dict[ObjectName, Service] = {}
        self.slices: dict[ObjectName, EndpointSlice] = {}
        self.node: Node | None = None
        self._by_service: dict[ObjectName, dict[ObjectName, EndpointSlice]] = {}
        self._synced: set[Kind] = set()
        self._pending = PendingChanges(set())

    @property
    def has_synced(self) -> bool:
        """Whether all lists have been read once, so that a missing object does not exist."""
        return len(self._synced) == len(Kind)

    def slices_of(self, service: ObjectName) -> Collection[EndpointSlice]:
        """Return the slices that name a Service, in no order."""
        found = self._by_service.get(service)
        return found.values() if found else ()

    def uid(self, kind: str, name: str) -> str:
        """Return the uid of a Service or the Node by its name in text, empty if unknown."""
        if kind == Kind.SERVICE.value:
            namespace, _, last = name.rpartition("/")
            service = self.services.get(ObjectName(namespace, last))
            return service.uid if service is not None else ""
        if kind == Kind.NODE.value and self.node is not None and self.node.name == name:
            return self.node.uid
        return ""

    def pending_count(self) -> int:
        """Count the Services that the next sync routes."""
        pending = self._pending
        return len(self.services) if pending.everything else len(pending.services)

    @property
    def has_pending(self) -> bool:
        """Whether anything has changed since the last call of `take_pending`."""
        return bool(self._pending)

    def take_pending(self) -> PendingChanges:
        """Return the changes since the last call, and begin a new set."""
        pending, self._pending = self._pending, PendingChanges(set())
        return pending

    def put_back(self, pending: PendingChanges) -> None:
        """Add the changes of a failed sync to the new ones."""
        now = self._pending
        # The latency of a change counts from its first reading, also if a retry commits it.
        now.services |= pending.services
        now.everything |= pending.everything
        now.read_at[:0] = pending.read_at
        now.triggered[:0] = pending.triggered

    def mark_all_pending(self) -> None:
        """Have all Services routed in the next sync."""
        self._pending.everything = True

    def route_again(self, names: Iterable[ObjectName]) -> None:
        """Have Services routed in the next sync, although they have not changed."""
        self._pending.services.update(names)

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

    def handle_event(self, event: Event) -> Kind | None:
        """Apply one event; return the kind of the changed object, None for no change."""
        match event:
            case Upsert(obj=Service() as service):
                kind, changed = Kind.SERVICE, self._put_service(service)
            case Upsert(obj=EndpointSlice() as each):
                kind, changed = Kind.ENDPOINT_SLICE, self._put_slice(each)
            case Upsert(obj=Node() as node):
                kind, changed = Kind.NODE, self._put_node(node)
            case Delete(kind=kind, name=name):
                changed = self._drop(kind, name)
            case Synced():
                self._sync(event)
                return None
            case InvalidObject():
                return None
        if not changed:
            return None
        self._pending.read_at.append(event.read_at)
        return kind

    def _put_service(self, service: Service) -> bool:
        # A list after a lost watch repeats all objects, and equal ones must cause no sync.
        if self.services.get(service.name) == service:
            return False
        self.services[service.name] = service
        self._pending.services.add(service.name)
        return True

    def _put_slice(self, new: EndpointSlice) -> bool:
        old = self.slices.get(new.name)
        if old == new:
            return False
        # The label kubernetes.io/service-name of a slice can be changed to another Service.
        if old is not None and old.service != new.service:
            self._unlink(old)
        self.slices[new.name] = new
        self._by_service.setdefault(new.service, {})[new.name] = new
        self._pending.services.add(new.service)
        # Slices of the first lists changed before the agent started; kube-proxy skips them too.
        if new.triggered and self.has_synced:
            self._pending.triggered.append(new)
        return True

    def _put_node(self, node: Node) -> bool:
        # kubelet updates the Node's status every few minutes, in fields that are not decoded.
        if self.node == node:
            return False
        self.node = node
        # The zone and the node port addresses are part of the routing of any Service.
        self._pending.everything = True
        return True

    def _drop(self, kind: Kind, name: ObjectName) -> bool:
        if kind is Kind.SERVICE:
            if self.services.pop(name, None) is None:
                return False
            self._pending.services.add(name)
        elif kind is Kind.ENDPOINT_SLICE:
            old = self.slices.pop(name, None)
            if old is None:
                return False
            self._unlink(old)
        elif self.node is None or self.node.name != name.name:
            return False
        else:
            # A deleted and recreated Node is the same machine, so its addresses stay until the new
            # object has others. Load balancers must not send clients here meanwhile.
            self.node = msgspec.structs.replace(self.node, eligible=False)
        return True

    def _unlink(self, old: EndpointSlice) -> None:
        rest = self._by_service[old.service]
        del rest[old.name]
        if not rest:
            del self._by_service[old.service]
        self._pending.services.add(old.service)

    def _sync(self, event: Synced) -> None:
        # A list has no events for objects that were deleted while no watch was open. kube-proxy
        # handles a Node that is missing from a list as deleted too.
        known: Iterable[ObjectName] = ()
        if event.kind is Kind.SERVICE:
            known = self.services
        elif event.kind is Kind.ENDPOINT_SLICE:
            known = self.slices
        elif self.node is not None:
            known = (ObjectName("", self.node.name),)
        # A list first, because _drop changes the mapping.
        for name in [name for name in known if name not in event.names]:
            self._drop(event.kind, name)
        if event.kind not in self._synced:
            self._synced.add(event.kind)
            self._pending.everything = True
