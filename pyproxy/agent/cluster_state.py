"""What the agent knows of the cluster, and which Services that has changed."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pyproxy.model.events import Delete, Event, InvalidObject, Synced, Upsert
from pyproxy.model.objects import EndpointSlice, Kind, Node, ObjectName, Service


class PendingChanges(msgspec.Struct):
    """Why Services must be answered again.

    `read_at` are the monotonic times at which the changes were read. `triggered` are the slices
    with a trigger time, in seconds since the epoch, that came with them.
    """

    services: set[ObjectName]
    everything: bool = False
    read_at: list[float] = msgspec.field(default_factory=list)
    triggered: list[EndpointSlice] = msgspec.field(default_factory=list)

    def __bool__(self) -> bool:
        return self.everything or bool(self.services)


class ClusterState:
    """Services, EndpointSlices and the Node as last heard of, joined by Service."""

    def __init__(self) -> None:
        self.services: dict[ObjectName, Service] = {}
        self.slices: dict[ObjectName, EndpointSlice] = {}
        self.node: Node | None = None
        self._by_service: dict[ObjectName, dict[ObjectName, EndpointSlice]] = {}
        self._synced: set[Kind] = set()
        self._touched = PendingChanges(set())

    @property
    def whole(self) -> bool:
        """Whether all lists have been read once, so that what is missing does not exist."""
        return len(self._synced) == len(Kind)

    def slices_of(self, service: ObjectName) -> Iterable[EndpointSlice]:
        """Give the slices that name a Service, in no order."""
        found = self._by_service.get(service)
        return found.values() if found else ()

    def uid(self, kind: str, name: str) -> str:
        """Give the uid of a Service or the Node by its name in text, empty where not known."""
        if kind == Kind.SERVICE.value:
            namespace, _, last = name.rpartition("/")
            service = self.services.get(ObjectName(namespace, last))
            return service.uid if service is not None else ""
        if kind == Kind.NODE.value and self.node is not None and self.node.name == name:
            return self.node.uid
        return ""

    def waiting(self) -> int:
        """Count the Services that have been touched."""
        touched = self._touched
        return len(self.services) if touched.everything else len(touched.services)

    def pending(self) -> bool:
        """Tell whether `take` has something to give."""
        return bool(self._touched)

    def take(self) -> PendingChanges:
        """Give what has been touched since the last call, and forget it."""
        touched, self._touched = self._touched, PendingChanges(set())
        return touched

    def put_back(self, touched: PendingChanges) -> None:
        """Touch again what could not be dealt with."""
        now = self._touched
        now.services |= touched.services
        now.everything |= touched.everything
        now.read_at[:0] = touched.read_at
        now.triggered[:0] = touched.triggered

    def touch(self, services: Iterable[ObjectName]) -> None:
        """Have Services answered again though nothing about them was heard."""
        self._touched.services.update(services)

    def touch_everything(self) -> None:
        """Have all Services answered again."""
        self._touched.everything = True

    def handle_event(self, event: Event) -> Kind | None:
        """Take in one event; the kind of object that it changed, None where it changed nothing."""
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
        self._touched.read_at.append(event.read_at)
        return kind

    def _put_service(self, service: Service) -> bool:
        if self.services.get(service.name) == service:
            return False
        self.services[service.name] = service
        self._touched.services.add(service.name)
        return True

    def _put_slice(self, new: EndpointSlice) -> bool:
        old = self.slices.get(new.name)
        if old == new:
            return False
        if old is not None and old.service != new.service:
            self._unlink(old)
        self.slices[new.name] = new
        self._by_service.setdefault(new.service, {})[new.name] = new
        self._touched.services.add(new.service)
        if new.triggered and self.whole:
            self._touched.triggered.append(new)
        return True

    def _put_node(self, node: Node) -> bool:
        if self.node == node:
            return False
        self.node = node
        self._touched.everything = True
        return True

    def _drop(self, kind: Kind, name: ObjectName) -> bool:
        if kind is Kind.SERVICE:
            if self.services.pop(name, None) is None:
                return False
            self._touched.services.add(name)
        elif kind is Kind.ENDPOINT_SLICE:
            old = self.slices.pop(name, None)
            if old is None:
                return False
            self._unlink(old)
        elif self.node is None or self.node.name != name.name:
            return False
        else:
            # A node that is deleted and made anew is the same machine: what it was goes on until
            # the new object says otherwise, but it is no place to send clients to.
            self.node = msgspec.structs.replace(self.node, eligible=False)
        return True

    def _unlink(self, old: EndpointSlice) -> None:
        rest = self._by_service[old.service]
        del rest[old.name]
        if not rest:
            del self._by_service[old.service]
        self._touched.services.add(old.service)

    def _sync(self, event: Synced) -> None:
        held: Iterable[ObjectName] = ()
        if event.kind is Kind.SERVICE:
            held = self.services
        elif event.kind is Kind.ENDPOINT_SLICE:
            held = self.slices
        for name in [name for name in held if name not in event.names]:
            self._drop(event.kind, name)
        if event.kind not in self._synced:
            self._synced.add(event.kind)
            self._touched.everything = True
