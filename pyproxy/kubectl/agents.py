"""Find the agents: the nodes of the cluster, and the agent's pod on each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote

import msgspec

from pyproxy.errors import UsageError, one_line
from pyproxy.kubectl.options import Options
from pyproxy.kubectl.rights import required
from pyproxy.source.client import Client
from pyproxy.source.object_lists import list_objects
from pyproxy.source.pod_exec import Container

_CONTAINERS = ("pyproxy", "kube-proxy")
"""The names of the agent's container; a service mesh or a policy may inject others."""

_LONGEST_TEXT = 200


class Agent(msgspec.Struct, frozen=True):
    """A node and its agent.

    `container` is None if there is nothing to ask; then `problem` says why. `node_ready` and
    `pod_ready` are the conditions Ready. `image` is that of the container.
    """

    node: str
    container: Container | None
    problem: str = ""
    node_ready: bool = True
    pod_ready: bool = False
    image: str = ""


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    labels: dict[str, str] | None = None
    deletion_timestamp: str | None = None


class _Condition(msgspec.Struct, frozen=True):
    type: str = ""
    status: str = ""


class _NodeStatus(msgspec.Struct, frozen=True):
    conditions: list[_Condition] | None = None


class _Node(msgspec.Struct, frozen=True):
    metadata: _Meta
    status: _NodeStatus = _NodeStatus()


class _Container(msgspec.Struct, frozen=True):
    name: str = ""
    image: str | None = None


class _PodSpec(msgspec.Struct, frozen=True, rename="camel"):
    node_name: str | None = None
    containers: list[_Container] | None = None


class _Waiting(msgspec.Struct, frozen=True):
    reason: str | None = None


class _State(msgspec.Struct, frozen=True):
    waiting: _Waiting | None = None
    terminated: _Waiting | None = None


class _ContainerStatus(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    restart_count: int = 0
    state: _State = _State()


class _PodStatus(msgspec.Struct, frozen=True, rename="camel"):
    phase: str | None = None
    reason: str | None = None
    conditions: list[_Condition] | None = None
    container_statuses: list[_ContainerStatus] | None = None


class _Pod(msgspec.Struct, frozen=True):
    metadata: _Meta
    spec: _PodSpec = _PodSpec()
    status: _PodStatus = _PodStatus()


def find_agents(client: Client, options: Options) -> tuple[Agent, ...]:
    """Return all Linux nodes with their agents, sorted by node. Blocks.

    Raises UsageError if a right is missing, if no pod is found, and for the name of a node that
    does not exist; SourceError if the API server does not respond.
    """
    with required():
        nodes = {node.metadata.name: node for node in list_objects(client, "/api/v1/nodes", _Node)}
        pods = list(_pods(client, options))
    if not pods:
        raise UsageError(
            f"no pod in namespace {options.namespace} has the labels "
            f"{' or '.join(options.selectors)}: name the agents' with --namespace and --selector"
        )
    by_node: dict[str, list[_Pod]] = {}
    for pod in pods:
        by_node.setdefault(pod.spec.node_name or "", []).append(pod)
    names = [name for name, node in nodes.items() if _is_linux(node)]
    for name in options.nodes:
        if name not in nodes:
            raise UsageError(f"--node {name}: the cluster has no such node")
    chosen = options.nodes or sorted(names, key=natural)
    return tuple(_agent(options.namespace, nodes[name], by_node.get(name, ())) for name in chosen)


def natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts node-10 after node-9."""
    return [
        (int(part[:9]), part) if part.isascii() and part.isdigit() else (-1, part)
        for part in re.split(r"(\d+)", name)
    ]


def _pods(client: Client, options: Options) -> Iterator[_Pod]:
    path = f"/api/v1/namespaces/{quote(options.namespace)}/pods"
    for selector in options.selectors:
        yield from list_objects(client, path, _Pod, {"labelSelector": selector})


def _is_linux(node: _Node) -> bool:
    return (node.metadata.labels or {}).get("kubernetes.io/os", "linux") == "linux"


def _agent(namespace: str, node: _Node, pods: Iterable[_Pod]) -> Agent:
    name, ready = node.metadata.name, _is_ready(node.status.conditions, default=True)
    # Old and new pod may both exist during an update, and pyproxy's beside kube-proxy's.
    best = min(pods, key=_preference, default=None)
    if best is None:
        problem = "no agent: the node has no such pod"
        return Agent(name, None, problem, node_ready=ready)
    chosen = _container(best)
    if chosen is None or (problem := _not_running(best, chosen.name)):
        text = problem if chosen else "it has no container"
        return Agent(name, None, f"pod {best.metadata.name}: {text}", node_ready=ready)
    return Agent(
        name,
        Container(namespace, best.metadata.name, chosen.name),
        node_ready=ready,
        pod_ready=_is_ready(best.status.conditions, default=False),
        image=chosen.image or "",
    )


def _preference(pod: _Pod) -> tuple[bool, bool, bool, bool, str]:
    chosen = _container(pod)
    return (
        # Before anything else, because a kube-proxy that runs does not replace a broken agent.
        (pod.metadata.labels or {}).get("app.kubernetes.io/name") != "pyproxy",
        chosen is None or bool(_not_running(pod, chosen.name)),
        pod.metadata.deletion_timestamp is not None,
        not _is_ready(pod.status.conditions, default=False),
        pod.metadata.name,
    )


def _container(pod: _Pod) -> _Container | None:
    containers = pod.spec.containers or []
    named = [each for each in containers if each.name in _CONTAINERS]
    return next(iter(named or containers), None)


def _not_running(pod: _Pod, container: str) -> str:
    """Return why no command can run in a pod, empty if one can."""
    status = pod.status
    for each in status.container_statuses or ():
        stopped = each.state.waiting or each.state.terminated
        if each.name == container and stopped is not None:
            restarts = f", {each.restart_count:,} restarts" if each.restart_count else ""
            reason = stopped.reason or "its container does not run"
            return one_line(reason + restarts, _LONGEST_TEXT)
    if status.phase != "Running":
        return one_line(status.reason or status.phase or "Pending", _LONGEST_TEXT)
    return ""


def _is_ready(conditions: Iterable[_Condition] | None, *, default: bool) -> bool:
    return next((c.status == "True" for c in conditions or () if c.type == "Ready"), default)
