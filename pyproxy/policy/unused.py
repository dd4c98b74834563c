"""Explain why endpoints are not used, for `pyproxy explain` and `pyproxy services`.

`policy.endpoints` selects the endpoints; this module only adds a reason to each that it left out.
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
    """Why an endpoint is not used, as text for output."""

    NOT_READY = "not ready"
    TERMINATING = "terminating"
    OTHER_NODE = "on another node, and the policy is Local"
    NO_NODE = "without a node in its slice, and the policy is Local"
    HINTED_FOR_OTHER_NODES = "hinted for other nodes"
    HINTED_FOR_OTHER_ZONES = "hinted for other zones"


class UnusedReasons(msgspec.Struct, frozen=True):
    """Why endpoints are unused: `cluster` under the policy Cluster, `local` under Local.

    `choice` is the topology mode, with the reasons why hints were ignored.
    """

    cluster: Mapping[Backend, UnusedReason]
    local: Mapping[Backend, UnusedReason]
    choice: topology.TopologyChoice


def unused_reasons(
    endpoints: Endpoints, usable: SelectedEndpoints, hostname: str, zone: str
) -> UnusedReasons:
    """Return a reason for every endpoint that is not in `usable`."""
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
    # Before the conditions, because no change of readiness would make such an endpoint local.
    if not endpoint.node:
        return UnusedReason.NO_NODE
    if endpoint.node != hostname:
        return UnusedReason.OTHER_NODE
    return _condition(endpoint)


def _condition(endpoint: Endpoint) -> UnusedReason:
    return UnusedReason.TERMINATING if endpoint.terminating else UnusedReason.NOT_READY
