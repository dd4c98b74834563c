"""The hooks that a kind may override for create, update and delete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyproxy_lab.apiserver.names import dns_subdomain_problem
from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.status import FieldError, invalid_value

NO_FIELDS: Mapping[str, str] = {}


class Rules:
    """The rules for one kind; those here are for a kind that asks for nothing special.

    The registry calls them in the order of a real server: `carry_over`, `reset_status`, `default`,
    `errors`, `update_errors`, `allocate`. They change `obj` and `new` in place.
    """

    fields: frozenset[str] = frozenset({"metadata.name", "metadata.namespace"})
    """Return the fields that a field selector may name."""
    creates_on_update = False
    """Whether a PUT may create the object."""
    returns_deleted = False
    """Whether a DELETE answers with the object; if not, with a Status."""
    has_generation = False
    """Whether metadata.generation counts changes of the content."""
    terminates = False
    """Whether a deletion with a grace period leaves the object, terminating, for so long."""

    def name_problem(self, name: str) -> str:
        """Return the error of a name, empty if it is valid."""
        return dns_subdomain_problem(name)

    def carry_over(self, new: Object, old: Object) -> None:
        """Fill in, from the old version, what a client may leave out of an update."""

    def reset_status(self, obj: Object) -> None:
        """Set the status that a new object begins with."""

    def default(self, obj: Object) -> None:
        """Fill in defaults."""

    def errors(self, obj: Object) -> list[FieldError]:
        """Return the errors of an object."""
        del obj
        return []

    def warnings(self, obj: Object) -> list[str]:
        """Return warnings about an object that is valid."""
        del obj
        return []

    def grace(self, obj: Object) -> int:
        """Return the seconds between a deletion that names none and the end of the object."""
        del obj
        return 0

    def update_errors(self, new: Object, old: Object) -> list[FieldError]:
        """Return the errors of changed fields that are immutable."""
        del new, old
        return []

    def allocate(self, new: Object, old: Object | None) -> list[FieldError]:
        """Take what the object needs of what the cluster has; on errors, nothing is taken."""
        del new, old
        return []

    def settle(self, new: Object | None, old: Object | None) -> None:
        """After a write or a deletion (`new` is None): let go what only the old version had."""

    def selectable(self, obj: Object) -> Mapping[str, str]:
        """Return the values of `fields`, metadata's aside."""
        del obj
        return NO_FIELDS


def unchanged_errors(
    new: Object, old: Object, field: str, detail: str = "field is immutable"
) -> list[FieldError]:
    """Refuse that a field, named by its path such as `spec.podCIDR`, changes."""
    if _at(new, field) == _at(old, field):
        return []
    return [invalid_value(field, _at(new, field), detail)]


def _at(obj: Object, field: str) -> Any:
    value: Any = obj
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
