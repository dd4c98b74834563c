"""The status of one node's agent, from the answer of `pyproxy status`, whatever its version."""

from __future__ import annotations

import msgspec

from pyproxy.errors import one_line
from pyproxy.kubectl.agents import Agent

LAG_LIMIT = 120.0
"""Seconds without data on a watch that are a fault, as for `pyproxy explain`."""

USAGE_LIMIT = 0.8
"""The part of a table from which its fill stands out."""

_LONGEST_TEXT = 120
_LARGEST = 10**15


class _Usage(msgspec.Struct, frozen=True):
    name: str = ""
    used: int = 0
    limit: int | None = None


class _Invalid(msgspec.Struct, frozen=True):
    kind: str = ""
    name: str = ""


class _Repair(msgspec.Struct, frozen=True):
    by: str = ""


class AgentStatus(msgspec.Struct, frozen=True, rename="camel"):
    """The fields of `pyproxy status -o json` that are used here; another version may lack some."""

    version: str = ""
    mode: str = ""
    node: str = ""
    health: str = ""
    healthy: bool = False
    source_age: float = 0.0
    sync_error: str = ""
    services: int = 0
    pending: int = 0
    repairs: int = 0
    last_repair: _Repair | None = None
    invalid: tuple[_Invalid, ...] = ()
    tables: tuple[_Usage, ...] = ()


class NodeStatus(msgspec.Struct, frozen=True, rename="camel"):
    """A node and its agent.

    `problem` is why there is no answer, or what is wrong with the agent; empty if nothing is.
    `answered` is false without an answer; then the fields after it are empty. `lag` is in seconds
    since the last data of the quietest watch, `fill` the fullest table's part of its limit.
    """

    node: str
    pod: str
    problem: str
    answered: bool
    version: str = ""
    mode: str = ""
    health: str = ""
    lag: float = 0.0
    pending: int = 0
    services: int = 0
    invalid_objects: int = 0
    repairs: int = 0
    repaired_after: str = ""
    fullest_table: str = ""
    fill: float = 0.0


def node_status(agent: Agent, found: AgentStatus | str) -> NodeStatus:
    """Return the row of a node from its answer, or from the reason why there is none."""
    pod = agent.container.pod if agent.container else ""
    if isinstance(found, str):
        text = found if agent.node_ready else f"{found}; the node is not ready"
        return NodeStatus(agent.node, pod, text, answered=False)
    fullest = max(found.tables, key=_fill, default=_Usage())
    return NodeStatus(
        node=agent.node,
        pod=pod,
        problem=_problem(agent, found),
        answered=True,
        version=_short(found.version),
        mode=_short(found.mode),
        health=_short(found.health),
        lag=min(max(found.source_age, 0.0), float(_LARGEST)),
        pending=_number(found.pending),
        services=_number(found.services),
        invalid_objects=len({(each.kind, each.name) for each in found.invalid}),
        repairs=_number(found.repairs),
        repaired_after=_short(found.last_repair.by) if found.last_repair else "",
        fullest_table=_short(fullest.name),
        fill=_fill(fullest),
    )


def _problem(agent: Agent, found: AgentStatus) -> str:
    if not found.healthy:
        cause = f"sync failed: {found.sync_error}" if found.sync_error else found.health
        return _short(cause) or "unhealthy"
    if found.node and found.node != agent.node:
        return f"it serves the node {_short(found.node)!r}: correct --hostname-override"
    if found.source_age > LAG_LIMIT:
        return "a watch has received nothing for minutes"
    if not agent.pod_ready:
        return "healthy, but its pod is not ready"
    return ""


def _fill(usage: _Usage) -> float:
    return min(usage.used / usage.limit, 1.0) if usage.limit and usage.limit > 0 else 0.0


def _short(text: str) -> str:
    return one_line(text, _LONGEST_TEXT)


def _number(value: int) -> int:
    return min(max(value, 0), _LARGEST)
