"""Connections by Service and by endpoint, as the kernel counts them in any proxy mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec


class Counted(msgspec.Struct, frozen=True, order=True):
    """A port of a Service, or one endpoint of it, whose connections are counted.

    `service` is `namespace/name`, with `:port` if the port has a name; `endpoint` is empty for all
    of them together.
    """

    service: str
    endpoint: str = ""


class Totals(msgspec.Struct, frozen=True):
    """Connections so far, by the object of the kernel that counted them."""

    by_element: Mapping[tuple[str, Any], int]
    owners: Mapping[tuple[str, Any], Counted]

    def since(self, before: Totals | None) -> dict[Counted, int]:
        """Count the connections after an earlier reading; all of them without one.

        An object that is new, or was replaced in between, counts from 0.
        """
        known = before.by_element if before else {}
        found: dict[Counted, int] = {}
        for element, total in self.by_element.items():
            start = known.get(element, 0)
            # A new object under the same key starts from 0, so a total below `start` is all new.
            gain = total - start if total >= start else total
            owner = self.owners[element]
            found[owner] = found.get(owner, 0) + gain
        return found


def is_selected(service: str, selected: str) -> bool:
    """Return whether `selected` names a Service's port: empty for all, `namespace/`, or a name."""
    if not selected or service == selected:
        return True
    return service.startswith(selected if selected.endswith("/") else f"{selected}:")


class ConnectionCounters(Protocol):
    """Reads the counters of the network namespace that it was made in.

    The methods block for a read-back, are idempotent, and are called in one thread, which need not
    be the one that commits.
    """

    def require(self) -> None:
        """Raise UsageError if nothing is counted here. Raises KernelError."""
        ...

    def services(self, wanted: str = "") -> Totals:
        """Read one total for each frontend of the Services that `wanted` names.

        `wanted` is empty for all, `namespace/` for a namespace's, or `namespace/name`. Raises
        KernelError.
        """
        ...

    def endpoints(self, services: Totals, *, everything: bool) -> Totals:
        """Read one total for each endpoint of the frontends that `services` has.

        `everything` reads all endpoints at once, which costs less if most are wanted. Raises
        KernelError.
        """
        ...

    def close(self) -> None:
        """Close the sockets. Idempotent."""
        ...
