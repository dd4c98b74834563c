"""The status of a pod, as a kubelet writes it: a value made of the states of its containers."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pyproxy_lab.client import JsonObject

BACK_OFF = "CrashLoopBackOff"


class ContainerState(msgspec.Struct, frozen=True):
    """A container: `exit_code` is None while it runs, `waiting` the reason why it does not yet.

    Times are as the API writes them; `last` is the state before the last restart.
    """

    name: str
    image: str
    ready: bool
    restarts: int = 0
    exit_code: int | None = None
    waiting: str = ""
    started_at: str = ""
    finished_at: str = ""
    last: JsonObject = {}


def status(
    containers: Sequence[ContainerState],
    *,
    restart: str,
    before: JsonObject,
    now: str,
) -> JsonObject:
    """Return the fields of a pod's status; `before` is its last one, whose times are kept.

    `restart` is the pod's restartPolicy.
    """
    phase = phase_of(containers, restart)
    ready = phase == "Running" and all(each.ready for each in containers)
    done = {"reason": "PodCompleted"} if phase == "Succeeded" else {}
    unready = {"reason": "ContainersNotReady"} if not ready else {}
    return {
        "phase": phase,
        "conditions": [
            _condition("PodScheduled", True, {}, before, now),
            _condition("Initialized", True, {}, before, now),
            _condition("ContainersReady", ready, done or unready, before, now),
            _condition("Ready", ready, done or unready, before, now),
        ],
        "containerStatuses": [_container(each) for each in containers],
    }


def place(addresses: Sequence[str], host: str, started: str) -> JsonObject:
    """Return the fields that stay: the addresses, the primary first, and the time of the start."""
    return {
        "hostIP": host,
        "podIP": addresses[0],
        "podIPs": [{"ip": address} for address in addresses],
        "startTime": started,
    }


def phase_of(containers: Sequence[ContainerState], restart: str) -> str:
    """Return Running until all containers have ended for good, then Succeeded or Failed."""
    if restart == "Always" or any(each.exit_code is None for each in containers):
        return "Running"
    failed = any(each.exit_code for each in containers)
    if restart == "OnFailure" and failed:
        return "Running"
    return "Failed" if failed else "Succeeded"


def restarts(exit_code: int, restart: str) -> bool:
    """Return whether a container that has ended starts again."""
    return restart == "Always" or (restart == "OnFailure" and exit_code != 0)


def terminated(state: ContainerState) -> JsonObject:
    """Return the state of a container that has ended."""
    code = state.exit_code or 0
    return {
        "terminated": {
            "exitCode": code,
            "reason": "Error" if code else "Completed",
            "startedAt": state.started_at,
            "finishedAt": state.finished_at,
        }
    }


def _container(state: ContainerState) -> JsonObject:
    running = not state.waiting and state.exit_code is None
    if state.waiting:
        shown: JsonObject = {"waiting": {"reason": state.waiting}}
    elif running:
        shown = {"running": {"startedAt": state.started_at}}
    else:
        shown = terminated(state)
    return {
        "name": state.name,
        "image": state.image,
        "imageID": "",
        "ready": state.ready,
        "started": running,
        "restartCount": state.restarts,
        "state": shown,
        "lastState": state.last,
    }


def _condition(kind: str, holds: bool, why: JsonObject, before: JsonObject, now: str) -> JsonObject:
    value = str(holds)
    for each in before.get("conditions") or ():
        if each["type"] == kind and each["status"] == value:
            now = each.get("lastTransitionTime") or now
    return {"type": kind, "status": value, "lastTransitionTime": now, **why}
