"""Topology hints: restrict the ready endpoints of a port to this node or this zone.

The EndpointSlice controller writes the hints, and a proxy follows or ignores them. It ignores them
if this node would have no endpoint, or if any ready endpoint has no hint yet. Facts: kube-proxy of
Kubernetes v1.36, where node hints (trafficDistribution PreferSameNode) precede zone hints.
"""

from __future__ import annotations

import enum
from collections.abc import Collection

import msgspec

from pyproxy.model.objects import Endpoint


class TopologyMode(enum.Enum):
    """The reach of connections; the values are names of trafficDistribution in the Service API."""

    SAME_NODE = "PreferSameNode"
    SAME_ZONE = "PreferSameZone"
    ANYWHERE = "anywhere"


class IgnoredHint(enum.Enum):
    """Why one kind of hint is ignored, as text for `pyproxy explain`."""

    NO_READY_ENDPOINT = "no endpoint is ready"
    NO_HINTS = "no ready endpoint has a hint"
    NODE_HINT_MISSING = "a ready endpoint has no node hint"
    NODE_NOT_HINTED = "no ready endpoint has a hint for this node"
    ZONE_HINT_MISSING = "a ready endpoint has no zone hint"
    ZONE_UNKNOWN = "this node has no label topology.kubernetes.io/zone"
    ZONE_NOT_HINTED = "no ready endpoint has a hint for this node's zone"


class TopologyChoice(msgspec.Struct, frozen=True):
    """A mode, and why the narrower modes do not apply, the narrowest first."""

    mode: TopologyMode
    ignored: tuple[IgnoredHint, ...] = ()


_NONE_READY = TopologyChoice(TopologyMode.ANYWHERE, (IgnoredHint.NO_READY_ENDPOINT,))
_NO_HINTS = TopologyChoice(TopologyMode.ANYWHERE, (IgnoredHint.NO_HINTS,))


def choose_mode(ready: Collection[Endpoint], hostname: str, zone: str) -> TopologyChoice:
    """Return the mode for the ready endpoints of one Service port in one family.

    `hostname` is the name of this node; `zone` is empty if the Node has no zone label.
    """
    if not ready:
        return _NONE_READY
    for endpoint in ready:  # a loop, because a generator would be slower here
        if endpoint.hint_zones or endpoint.hint_nodes:
            break
    else:
        return _NO_HINTS
    # A missing hint means that the controller has not finished: following the others would move the
    # load of all endpoints to a few.
    if not all(endpoint.hint_nodes for endpoint in ready):
        no_node = IgnoredHint.NODE_HINT_MISSING
    elif any(hostname in endpoint.hint_nodes for endpoint in ready):
        return TopologyChoice(TopologyMode.SAME_NODE)
    else:
        no_node = IgnoredHint.NODE_NOT_HINTED
    if not all(endpoint.hint_zones for endpoint in ready):
        no_zone = IgnoredHint.ZONE_HINT_MISSING
    elif not zone:
        no_zone = IgnoredHint.ZONE_UNKNOWN
    elif any(zone in endpoint.hint_zones for endpoint in ready):
        return TopologyChoice(TopologyMode.SAME_ZONE, (no_node,))
    else:
        no_zone = IgnoredHint.ZONE_NOT_HINTED
    return TopologyChoice(TopologyMode.ANYWHERE, (no_node, no_zone))


def within(endpoint: Endpoint, mode: TopologyMode, hostname: str, zone: str) -> bool:
    """Return whether the mode allows an endpoint."""
    match mode:
        case TopologyMode.SAME_NODE:
            return hostname in endpoint.hint_nodes
        case TopologyMode.SAME_ZONE:
            return zone in endpoint.hint_zones
        case TopologyMode.ANYWHERE:
            return True
