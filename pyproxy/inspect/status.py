"""The agent's status: the value that `pyproxy status` and the page show."""

from __future__ import annotations

import msgspec

import pyproxy
from pyproxy.dataplane.interface import FlowOffloadState, TableUsage
from pyproxy.errors import Problem
from pyproxy.inspect.listing import Listing
from pyproxy.inspect.snapshot import Repair, Snapshot, Sync
from pyproxy.model.address import address_text
from pyproxy.model.config_problems import ConfigProblem
from pyproxy.redaction import bare_urls


class InvalidObject(msgspec.Struct, frozen=True):
    """A part of an object that cannot be programmed, and the effect."""

    kind: str
    name: str
    field: str
    message: str
    reason: str


class Status(msgspec.Struct, frozen=True, rename="camel"):
    """Mode, health, numbers of objects, syncs, repairs and invalid objects.

    Times are in seconds since the epoch, ages and durations in seconds. `source` is the API server,
    kubeconfig or folder of manifests, `source_age` as `api_age` in Snapshot. `endpoints` counts all
    endpoints of all slices. `sync_error` is that of the last sync, empty after a successful one.
    `flow_offload` is None without `--flow-offload`.
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
    sync_error: str = ""
    last_repair: Repair | None = None
    invalid: tuple[InvalidObject, ...] = ()
    tables: tuple[TableUsage, ...] = ()
    config_problems: tuple[ConfigProblem, ...] = ()
    flow_offload: FlowOffloadState | None = None


def list_status(
    snapshot: Snapshot,
    tables: tuple[TableUsage, ...] = (),
    flow_offload: FlowOffloadState | None = None,
) -> Listing[Status]:
    """Return the status of a snapshot, with the invalid objects one by one."""
    found = msgspec.structs.replace(status(snapshot, tables, 0), flow_offload=flow_offload)
    return Listing(found, {"invalid": map(invalid_object, snapshot.problems)})


def status(
    snapshot: Snapshot, tables: tuple[TableUsage, ...] = (), limit: int | None = None
) -> Status:
    """Return the status of a snapshot, with `limit` invalid objects at most."""
    settings, node = snapshot.settings, snapshot.node
    return Status(
        version=pyproxy.__version__,
        mode=settings.mode.value,
        node=settings.node_name,
        zone=node.zone if node else "",
        started=snapshot.started,
        now=snapshot.now,
        health=health(snapshot),
        healthy=is_healthy(snapshot),
        source=settings.manifests
        or bare_urls(settings.api.master)
        or settings.api.kubeconfig
        or "in-cluster",
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
        sync_error=snapshot.sync_error,
        last_repair=snapshot.last_repair,
        invalid=tuple(map(invalid_object, snapshot.problems[:limit])),
        tables=tables,
        config_problems=snapshot.config_problems,
    )


def is_healthy(snapshot: Snapshot) -> bool:
    """Return whether the agent is healthy and not shutting down."""
    return snapshot.health.healthy and not snapshot.health.shutting_down


def health(snapshot: Snapshot) -> str:
    """Return the agent's health in a few words."""
    report = snapshot.health
    if report.shutting_down:
        return "shutting down"
    if not report.last_updated:
        return "starting: the first sync is not complete"
    if not report.healthy:
        return "unhealthy: a sync is overdue, or an agent thread is stuck or fails repeatedly"
    return "healthy" if report.node_eligible else "healthy, on a node that is being deleted"


def invalid_object(problem: Problem) -> InvalidObject:
    """Return a problem in texts."""
    return InvalidObject(
        problem.kind, problem.name, problem.field, problem.message, problem.reason.value
    )
