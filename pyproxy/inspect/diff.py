"""The desired state as one value, and its difference to the kernel state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from pyproxy.config.settings import Settings
from pyproxy.dataplane.interface import Dataplane, NodeRouting
from pyproxy.inspect.listing import Listing
from pyproxy.inspect.services import list_routing
from pyproxy.inspect.snapshot import Snapshot
from pyproxy.policy.routing import ServiceRouting


class DesiredState(msgspec.Struct, frozen=True):
    """All routings, and the settings and node facts that a dataplane needs to plan them.

    In JSON, addresses are base64. `pending` is the number of Services that wait for a sync.
    """

    settings: Settings
    node: NodeRouting
    routings: tuple[ServiceRouting, ...]
    pending: int


class Diff(msgspec.Struct, frozen=True, rename="camel"):
    """The plan of a full sync: what it would write to the kernel now.

    `same` is true if it would write nothing. `lines` are the transaction as commands of the
    kernel's own tool, `counts` the number of objects by kind. `rules` names the differences of
    base rules. `messages` are the netlink messages in hexadecimal, if requested.
    """

    same: bool
    mode: str
    pending: int
    counts: Mapping[str, int]
    lines: tuple[str, ...]
    rules: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()


def desired_state(snapshot: Snapshot) -> DesiredState:
    """Return the desired state of a snapshot."""
    return list_desired_state(snapshot).whole()


def list_desired_state(snapshot: Snapshot) -> Listing[DesiredState]:
    """Return the desired state of a snapshot, Service by Service and port by port."""
    head = DesiredState(snapshot.settings, snapshot.node_routing, (), snapshot.pending)
    return Listing(head, {"routings": map(list_routing, snapshot.routings.values())})


def diff(dataplane: Dataplane[Any], desired: DesiredState, *, netlink: bool) -> Diff:
    """Return the difference between desired state and kernel state; write nothing.

    `dataplane` must not be the agent's own, because `plan_full` replaces its committed state.
    Raises KernelError.
    """
    # plan_full never writes: a commit would.
    plan = dataplane.plan_full(desired.routings, desired.node)
    return Diff(
        same=not plan,
        mode=dataplane.name,
        pending=desired.pending,
        counts=dict(plan.counts()),
        lines=tuple(plan.lines()),
        rules=dataplane.check_base_rules(desired.node),
        messages=tuple(plan.netlink()) if netlink else (),
    )
