"""Which of the ready endpoints are near enough: what becomes of topology hints on this node.

The EndpointSlice controller writes the hints; a proxy may only follow or ignore them, and it
ignores them whenever following would leave this node with nothing, or would skip endpoints that
the controller has not placed yet. Facts: kube-proxy of Kubernetes v1.36, where node hints
(trafficDistribution PreferSameNode) come before zone hints.
"""

from __future__ import annotations

import enum
from collections.abc import Collection

import msgspec

from pyproxy.model.objects import Endpoint


class TopologyMode(enum.Enum):
    """How far connections may go; the values are the Service API's names for it."""

    SAME_NODE = "PreferSameNode"
    SAME_ZONE = "PreferSameZone"
    ANYWHERE = "anywhere"


class IgnoredHint(enum.Enum):
    """Why a kind of hint was not followed, as a person would be told."""

    NO_READY_ENDPOINT = "no endpoint is ready, so there is nothing to choose from"
    NO_HINTS = "no ready endpoint has a hint"
    NODE_HINT_MISSING = "a ready endpoint has no node hint"
    NODE_NOT_HINTED = "no ready endpoint has a hint for this node"
    ZONE_HINT_MISSING = "a ready endpoint has no zone hint"
    ZONE_UNKNOWN = "this node has no label topology.kubernetes.io/zone"
    ZONE_NOT_HINTED = "no ready endpoint has a hint for this node's zone"


class TopologyChoice(msgspec.Struct, frozen=True):
    """A mode, and why the finer modes were not taken (for `explain`), the finest first."""

    mode: TopologyMode
    ignored: tuple[IgnoredHint, ...] = ()


_NONE_READY = TopologyChoice(TopologyMode.ANYWHERE, (IgnoredHint.NO_READY_ENDPOINT,))
_NO_HINTS = TopologyChoice(TopologyMode.ANYWHERE, (IgnoredHint.NO_HINTS,))


def choose_mode(ready: Collection[Endpoint], hostname: str, zone: str) -> TopologyChoice:
    """Choose the mode for the ready endpoints of one Service port in one family.

    `hostname` is this node's name; `zone` is empty where the node does not say.
    """
    if not ready:
        return _NONE_READY
    for endpoint in ready:  # nearly always to its end, and so no generator
        if endpoint.hint_zones or endpoint.hint_nodes:
            break
    else:
        return _NO_HINTS
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
    """Tell whether an endpoint is within the chosen mode."""
    match mode:
        case TopologyMode.SAME_NODE:
            return hostname in endpoint.hint_nodes
        case TopologyMode.SAME_ZONE:
            return zone in endpoint.hint_zones
        case TopologyMode.ANYWHERE:
            return True
