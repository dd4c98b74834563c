"""Why a backend is not used: a reason for each that the decision in `backends` has left out.

Nothing is decided here: who is used is asked of the answer, and only the others get a reason.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from pyproxy.model.address import Backend
from pyproxy.model.objects import Endpoint
from pyproxy.policy import topology
from pyproxy.policy.endpoints import Endpoints, SelectedEndpoints


class UnusedReason(enum.Enum):
    """A reason, as a person would be told."""

    NOT_READY = "not ready"
    TERMINATING = "terminating"
    OTHER_NODE = "on another node, and the policy is Local"
    NO_NODE = "its slice does not say on which node it is, and the policy is Local"
    HINTED_FOR_OTHER_NODES = "hinted for other nodes"
    HINTED_FOR_OTHER_ZONES = "hinted for other zones"


class UnusedReasons(msgspec.Struct, frozen=True):
    """Why each backend is not used by the policy Cluster, and by the policy Local.

    `choice` says what became of hints.
    """

    cluster: Mapping[Backend, UnusedReason]
    local: Mapping[Backend, UnusedReason]
    choice: topology.TopologyChoice


def unused_reasons(
    endpoints: Endpoints, usable: SelectedEndpoints, hostname: str, zone: str
) -> UnusedReasons:
    """Give a reason for every endpoint that `select_endpoints` left out of `usable`."""
    ready = [endpoint for endpoint in endpoints.values() if endpoint.ready]
    choice = topology.choose_mode(ready, hostname, zone)
    used, local = frozenset(usable.cluster), frozenset(usable.local)
    return UnusedReasons(
        {b: _not_in_cluster(e, choice.mode) for b, e in endpoints.items() if b not in used},
        {b: _not_local(e, hostname) for b, e in endpoints.items() if b not in local},
        choice,
    )


def _not_in_cluster(endpoint: Endpoint, mode: topology.TopologyMode) -> UnusedReason:
    if not endpoint.ready:
        return _condition(endpoint)
    if mode is topology.TopologyMode.SAME_NODE:
        return UnusedReason.HINTED_FOR_OTHER_NODES
    return UnusedReason.HINTED_FOR_OTHER_ZONES


def _not_local(endpoint: Endpoint, hostname: str) -> UnusedReason:
    if not endpoint.node:
        return UnusedReason.NO_NODE
    if endpoint.node != hostname:
        return UnusedReason.OTHER_NODE
    return _condition(endpoint)


def _condition(endpoint: Endpoint) -> UnusedReason:
    return UnusedReason.TERMINATING if endpoint.terminating else UnusedReason.NOT_READY
