"""How the agent on this node is, as one page."""

from __future__ import annotations

import msgspec

import pyproxy
from pyproxy.dataplane.interface import TableUsage
from pyproxy.errors import Problem
from pyproxy.inspect.query import Nothing, Query
from pyproxy.inspect.snapshot import AgentView, Repair, Snapshot, Sync
from pyproxy.model.address import address_text


class InvalidObject(msgspec.Struct, frozen=True):
    """What is wrong with one object, and what becomes of it."""

    kind: str
    name: str
    field: str
    message: str
    reason: str


class Status(msgspec.Struct, frozen=True, rename="camel"):
    """Mode, health, size, pace, and what is not as it should be.

    Times of day are in seconds since the epoch, durations in seconds. `source` is where objects
    come from, and `source_age` for how long nothing came from there. `endpoints` counts every
    endpoint of every slice, `fill` what the kernel holds.
    """

    version: str
    mode: str
    node: str
    zone: str
    started: float
    now: float
    health: str
    healthy: bool
    source: str
    source_age: float
    services: int
    slices: int
    endpoints: int
    pending: int
    syncs: int
    repairs: int
    node_port_addresses: tuple[str, ...]
    pod_networks: tuple[str, ...]
    last_sync: Sync | None = None
    last_repair: Repair | None = None
    invalid: tuple[InvalidObject, ...] = ()
    fill: tuple[TableUsage, ...] = ()


def status(snapshot: Snapshot, fill: tuple[TableUsage, ...] = ()) -> Status:
    """Reduce a snapshot to its status."""
    settings, node = snapshot.settings, snapshot.node
    return Status(
        version=pyproxy.__version__,
        mode=settings.mode.value,
        node=settings.node_name,
        zone=node.zone if node else "",
        started=snapshot.started,
        now=snapshot.now,
        health=health(snapshot),
        healthy=snapshot.health.healthy and not snapshot.health.shutting_down,
        source=settings.manifests or settings.api.master or settings.api.kubeconfig or "in-cluster",
        source_age=snapshot.api_age,
        services=len(snapshot.services),
        slices=len(snapshot.slices),
        endpoints=sum(len(each.endpoints) for each in snapshot.slices.values()),
        pending=snapshot.pending,
        syncs=snapshot.syncs,
        repairs=snapshot.repairs,
        node_port_addresses=tuple(map(address_text, snapshot.node_routing.node_port_addresses)),
        pod_networks=tuple(map(str, snapshot.node_routing.pod_networks)),
        last_sync=snapshot.last_sync,
        last_repair=snapshot.last_repair,
        invalid=tuple(map(invalid, snapshot.problems)),
        fill=fill,
    )


def health(snapshot: Snapshot) -> str:
    """Say how the agent is, in a few words."""
    report = snapshot.health
    if report.shutting_down:
        return "ending"
    if not report.last_updated:
        return "starting: nothing is programmed yet"
    if not report.healthy:
        return "unhealthy: the last sync is overdue, or a part of the agent keeps failing"
    return "healthy" if report.node_eligible else "healthy, on a node that is to go"


def invalid(problem: Problem) -> InvalidObject:
    """Write a problem for people and scripts."""
    return InvalidObject(
        problem.kind, problem.name, problem.field, problem.message, problem.reason.value
    )


def _route(witness: AgentView, _: Nothing) -> Status:
    return status(witness.snapshot(), witness.table_usage())


STATUS = Query("/status", Nothing, Status, _route)
