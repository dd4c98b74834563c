"""Create, update, patch and delete, without HTTP."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import msgspec

from pyproxy_lab.apiserver import names, status
from pyproxy_lab.apiserver.allocate import AddressRange, PortRange
from pyproxy_lab.apiserver.kinds.endpoint_slices import EndpointSliceRules
from pyproxy_lab.apiserver.kinds.events import EventRules
from pyproxy_lab.apiserver.kinds.nodes import NamespaceRules, NodeRules
from pyproxy_lab.apiserver.kinds.pods import PodRules
from pyproxy_lab.apiserver.kinds.rules import Rules
from pyproxy_lab.apiserver.kinds.service_allocation import Allocator
from pyproxy_lab.apiserver.kinds.services import ServiceRules
from pyproxy_lab.apiserver.kinds.stored import ConfigMapRules, EndpointsRules, SecretRules
from pyproxy_lab.apiserver.kinds.workloads import (
    DaemonSetRules,
    DeploymentRules,
    ReplicaSetRules,
    RevisionRules,
    StatefulSetRules,
)
from pyproxy_lab.apiserver.objects import (
    SERVER_FIELDS,
    Object,
    content,
    generated_name,
    give_birth,
    keep_other_parts,
    keep_server_metadata,
    metadata,
    put_in_order,
    timestamp,
)
from pyproxy_lab.apiserver.resources import NAMESPACES, Resource, by_kind
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.apiserver.store import Store, Stored, Table, object_path

_MOST_NAME_ATTEMPTS = 8
_IMMORTAL = {"default", "kube-public", "kube-system"}


class Deletion(msgspec.Struct, frozen=True):
    """How to delete: in `grace` seconds where given, and only the object that is meant.

    `orphan` keeps the objects that the deleted one owns.
    """

    grace: int | None = None
    orphan: bool = False
    uid: str = ""
    revision: str = ""


class Registry:
    """Objects with the rules of their kinds."""

    def __init__(self, settings: Settings) -> None:
        self.store = Store(settings.history)
        ranges = tuple(AddressRange(network) for network in settings.cluster_ips)
        ports = PortRange(settings.first_node_port, settings.last_node_port)
        self._rules: dict[str, Rules] = {
            "namespaces": NamespaceRules(),
            "nodes": NodeRules(),
            "services": ServiceRules(Allocator(ranges, ports)),
            "pods": PodRules(),
            "endpointslices": EndpointSliceRules(),
            "events": EventRules(),
            "configmaps": ConfigMapRules(),
            "secrets": SecretRules(),
            "serviceaccounts": Rules(),
            "endpoints": EndpointsRules(),
            "deployments": DeploymentRules(),
            "replicasets": ReplicaSetRules(),
            "statefulsets": StatefulSetRules(),
            "daemonsets": DaemonSetRules(),
            "controllerrevisions": RevisionRules(),
        }
        self.has_kubelet = False
        """Whether a program ends deleted pods. If not, their grace periods alone do."""

        self._kept: dict[tuple[str, str], Object] = {}

    def rules(self, resource: Resource) -> Rules:
        """Return the rules for a resource's kind."""
        return self._rules[resource.table]

    def find(self, resource: Resource, namespace: str, name: str) -> Stored:
        """Find an object. Raises ApiError (404)."""
        found = self.store.table(resource).get(object_path(namespace, name))
        if found is None:
            raise status.not_found(resource, name)
        return found

    def create(self, resource: Resource, namespace: str, obj: Object) -> Stored:
        """Create an object. Raises ApiError: 404, 409, 422."""
        table, rules = self.store.table(resource), self.rules(resource)
        meta = self._place(resource, namespace, obj)
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = _free_name(table, namespace, meta["generateName"])
        meta.pop("resourceVersion", None)
        for field in SERVER_FIELDS:
            meta.pop(field, None)
        rules.reset_status(obj)
        rules.default(obj)
        self._check_metadata(resource, obj, rules.errors(obj))
        if table.get(object_path(namespace, meta["name"])):
            raise status.already_exists(resource, meta["name"])
        give_birth(obj, rules.has_generation)
        return self._commit(resource, obj, None)

    def update(
        self,
        resource: Resource,
        old: Stored,
        change: Callable[[Object], Object],
        subresource: str = "",
    ) -> Stored:
        """Change an object; `change` gives the new version from a copy of the old one.

        A change that changes nothing writes nothing. Raises ApiError: 409, 422.
        """
        rules = self.rules(resource)
        before = old.decode()
        new = change(old.decode())
        meta = metadata(new)
        for field in ("name", "namespace"):
            meta.setdefault(field, before["metadata"].get(field, ""))
        if not meta["namespace"]:
            del meta["namespace"]
        self._check_current(resource, old, meta)
        keep_server_metadata(meta, before["metadata"])
        keep_other_parts(new, before, subresource)
        rules.carry_over(new, before)
        rules.default(new)
        errors = names.metadata_update_errors(meta, before["metadata"])
        errors += rules.errors(new)
        errors = errors or rules.update_errors(new, before)
        self._check_metadata(resource, new, errors)
        put_in_order(new)
        if rules.has_generation and content(new) != content(before):
            meta["generation"] = before["metadata"].get("generation", 1) + 1
        meta["resourceVersion"] = before["metadata"]["resourceVersion"]
        if new == before:
            return old
        stored = self._commit(resource, new, before)
        held = meta.get("finalizers") or meta.get("deletionGracePeriodSeconds")
        if meta.get("deletionTimestamp") and not held:
            return self._remove(resource, stored)
        return stored

    def delete(self, resource: Resource, old: Stored, how: Deletion) -> Stored:
        """Delete an object, or mark it where it must wait. Raises ApiError: 403, 409."""
        if resource is NAMESPACES and old.name in _IMMORTAL:
            raise status.undeletable(resource, old.name)
        before = old.decode()
        meta = before["metadata"]
        if how.uid and how.uid != old.uid:
            raise status.conflict(
                resource,
                old.name,
                f"Precondition failed: UID in precondition: {how.uid}, UID in object meta: "
                f"{old.uid}",
            )
        if how.revision and how.revision != meta["resourceVersion"]:
            raise status.conflict(
                resource,
                old.name,
                f"Precondition failed: ResourceVersion in precondition: {how.revision}, "
                f"ResourceVersion in object meta: {meta['resourceVersion']}",
            )
        grace = self._grace(resource, before, how)
        if how.orphan:
            self._release_dependents(old.uid)
        if not grace and not meta.get("finalizers"):
            return self._remove(resource, old)
        if meta.get("deletionTimestamp") and grace >= meta["deletionGracePeriodSeconds"]:
            return old
        meta["deletionTimestamp"] = timestamp()
        meta["deletionGracePeriodSeconds"] = grace
        return self._commit(resource, before, old.decode())

    def _grace(self, resource: Resource, obj: Object, how: Deletion) -> int:
        """Return the seconds that a deleted object stays."""
        rules = self.rules(resource)
        if not rules.terminates:
            return 0
        if how.grace is not None:
            return how.grace
        return rules.grace(obj) if self.has_kubelet else 0

    def _release_dependents(self, uid: str) -> None:
        """Take an owner out of the objects that it owns."""
        for table in self.store.tables():
            for stored in table.current(""):
                obj = stored.decode()
                owners = obj["metadata"].get("ownerReferences") or []
                kept = [owner for owner in owners if owner.get("uid") != uid]
                if len(kept) != len(owners):
                    obj["metadata"]["ownerReferences"] = kept
                    self._commit(table.resource, obj, stored.decode())

    def finish(self, resource: Resource, marked: Stored) -> None:
        """Remove an object whose grace period is over, if it is still the same."""
        current = self.store.table(resource).get(marked.path)
        if current and current.uid == marked.uid:
            self.delete(resource, current, Deletion(grace=0))

    def load(self, objects: Iterable[Object]) -> int:
        """Create or replace objects as they are, status included, unchecked; count them.

        For lots of objects that are known to be good. A Service gets what it does not name, but
        what it does name must be free. Namespaces are made as needed. Raises ApiError (422).
        """
        count = 0
        for given in objects:
            resource = by_kind(given["apiVersion"], given["kind"])
            if resource is None:
                raise status.bad_request(f"{given['apiVersion']} {given['kind']} is not served")
            obj = copy.deepcopy(given)
            meta, rules = metadata(obj), self.rules(resource)
            namespace = meta.setdefault("namespace", "default") if resource.namespaced else ""
            self._ensure_namespace(namespace)
            old = self.store.table(resource).get(object_path(namespace, meta["name"]))
            before = old.decode() if old else None
            if before is not None:
                keep_server_metadata(meta, before["metadata"])
                rules.carry_over(obj, before)
            rules.default(obj)
            if before is None:
                give_birth(obj, rules.has_generation)
            self._commit(resource, obj, before)
            count += 1
        return count

    def keep(self, obj: Object) -> None:
        """Load an object of the cluster's own, and load it again whenever it is deleted."""
        self.load([obj])
        meta = obj["metadata"]
        resource = by_kind(obj["apiVersion"], obj["kind"])
        if resource is not None:
            self._kept[resource.table, object_path(meta.get("namespace", ""), meta["name"])] = obj

    def _ensure_namespace(self, name: str) -> None:
        if name and self.store.table(NAMESPACES).get(object_path("", name)) is None:
            self.create(NAMESPACES, "", {"metadata": {"name": name}})

    def _place(self, resource: Resource, namespace: str, obj: Object) -> Object:
        """Put a new object into the namespace of the request."""
        meta = metadata(obj)
        if not resource.namespaced:
            meta.pop("namespace", None)
            return meta
        if meta.setdefault("namespace", namespace) != namespace:
            raise status.bad_request(
                "the namespace of the provided object does not match the namespace sent on the "
                "request"
            )
        home = self.store.table(NAMESPACES).get(object_path("", namespace))
        if home is None:
            raise status.not_found(NAMESPACES, namespace)
        return meta

    def _check_current(self, resource: Resource, old: Stored, meta: Object) -> None:
        if meta.get("uid") and meta["uid"] != old.uid:
            why = (
                f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: "
                f"{old.uid}"
            )
            raise status.conflict(resource, old.name, why)
        if meta.get("resourceVersion") not in (None, "", "0", str(old.revision)):
            raise status.conflict(resource, old.name)

    def _check_metadata(
        self, resource: Resource, obj: Object, errors: list[status.FieldError]
    ) -> None:
        meta = obj["metadata"]
        name = meta.get("name", "")
        problem = self.rules(resource).name_problem(name) if name else ""
        errors = names.metadata_errors(meta, problem) + errors
        if errors:
            raise status.invalid(resource, name, errors)

    def _commit(self, resource: Resource, obj: Object, old: Object | None) -> Stored:
        rules = self.rules(resource)
        if errors := rules.allocate(obj, old):
            raise status.invalid(resource, obj["metadata"]["name"], errors)
        stored = self.store.write(resource, obj, rules.selectable(obj))
        rules.settle(obj, old)
        return stored

    def _remove(self, resource: Resource, old: Stored) -> Stored:
        final = old.decode()
        if resource is NAMESPACES:
            self._empty(old.name)
            final["status"]["phase"] = "Terminating"
            final["metadata"]["deletionTimestamp"] = timestamp()
        removed = self.store.remove(resource, old, final)
        self.rules(resource).settle(None, final)
        if kept := self._kept.get((resource.table, old.path)):
            self.load([kept])
        return removed

    def _empty(self, namespace: str) -> None:
        for table in self.store.tables():
            if table.resource.namespaced:
                for stored in table.current(object_path(namespace, "")):
                    self._remove(table.resource, stored)


def _free_name(table: Table, namespace: str, base: str) -> str:
    for _ in range(_MOST_NAME_ATTEMPTS):
        name = generated_name(base)
        if table.get(object_path(namespace, name)) is None:
            return name
    raise status.already_exists(table.resource, base)
