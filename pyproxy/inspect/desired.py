"""What the kernel should hold, as one value: whoever has it can compare without the agent."""

from __future__ import annotations

import msgspec

from pyproxy.config.settings import Settings
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.inspect.query import Nothing, Query
from pyproxy.inspect.snapshot import AgentView, Snapshot
from pyproxy.policy.routing import ServiceRouting


class Desired(msgspec.Struct, frozen=True):
    """All answers, and what dataplanes need to know besides. As JSON, addresses are base64."""

    settings: Settings
    node: NodeRouting
    routings: tuple[ServiceRouting, ...]
    pending: int


def desired(snapshot: Snapshot) -> Desired:
    """Take what a snapshot says should be programmed."""
    return Desired(
        snapshot.settings,
        snapshot.node_routing,
        tuple(snapshot.routings.values()),
        snapshot.pending,
    )


def _route(witness: AgentView, _: Nothing) -> Desired:
    return desired(witness.snapshot())


DESIRED = Query("/desired", Nothing, Desired, _route)
