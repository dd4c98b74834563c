"""One check from beginning to end; whatever happens, its namespace is removed."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from pyproxy.errors import UsageError
from pyproxy.inspect.humanize import count, listed
from pyproxy.kubectl.agents import Agent, natural
from pyproxy.kubectl.ask import Question as AgentQuestion
from pyproxy.kubectl.ask import decoder, read
from pyproxy.kubectl.check import matrix, objects, plan
from pyproxy.kubectl.check.ask_pods import Pods, Question
from pyproxy.kubectl.check.cluster import (
    CheckNamespace,
    PodsFound,
    leftovers,
    node_addresses,
    try_remove,
)
from pyproxy.kubectl.check.matrix import CheckReport, Outcome
from pyproxy.kubectl.check.objects import Pod
from pyproxy.kubectl.check.plan import ConnectionTest, Facts
from pyproxy.kubectl.check.rollout import roll_out, tests_of
from pyproxy.kubectl.fan_out import ask_all
from pyproxy.kubectl.node_status import AgentStatus, node_status
from pyproxy.kubectl.options import Options
from pyproxy.source.client import Client

_STATUS = AgentQuestion(("status",))
_AGENT_TIMEOUT = 10.0
_PREFIX = "pyproxy-check-"
_FIRST_HOST_PORT, _HOST_PORTS = 20_000, 10_000
"""Below the kernel's ephemeral ports and the range of node ports."""

_DRAINING_GRACE = 10


class Settings(msgspec.Struct, frozen=True):
    """Choices of the user; `settle` is in seconds."""

    image: str
    most_nodes: int
    settle: float
    keep: bool


def spread(nodes: Sequence[str], most: int) -> tuple[str, ...]:
    """Return at most `most` nodes, evenly spread over the sequence."""
    if len(nodes) <= most:
        return tuple(nodes)
    return tuple(nodes[index * len(nodes) // most] for index in range(most))


def pods_of(nodes: Sequence[str], host_port: int) -> Iterator[Pod]:
    """Yield the pods of a check."""
    for number, node in enumerate(nodes, 1):
        yield Pod(f"server-{number}", "server", node, node)
        yield Pod(f"client-{number}", "client", node, f"client on {node}")
        yield Pod(f"host-{number}", "host", node, f"host {node}", host_port, host=True)
    for number, node in enumerate((nodes[0], nodes[-1]), 1):
        yield Pod(f"rollout-{number}", "rollout", node, f"rollout-{number}", grace=_DRAINING_GRACE)


class Check:
    """A check; `progress` gets a line for each step."""

    def __init__(
        self,
        client: Client,
        agents: Sequence[Agent],
        options: Options,
        settings: Settings,
        progress: Callable[[str], None],
    ) -> None:
        self._client = client
        self._agents = agents
        self._options = options
        self._settings = settings
        self._progress = progress
        self._notes: list[str] = []
        self._created = False
        self._namespace = CheckNamespace(client, _PREFIX + secrets.token_hex(3))
        self._pods = Pods(client, self._namespace.name, options.timeout, options.parallel)

    def run(self) -> CheckReport:
        """Run the check. Blocks; raises UsageError and SourceError once all is removed."""
        image = self._settings.image or _image(self._agents)
        nodes = self._nodes()
        for each in leftovers(self._client):
            self._notes.append(
                f"namespace {each} is of another check: kubectl delete namespace {each} removes it"
            )
        agents = self._check_agents()
        try:
            outcomes, results = self._test(nodes, image)
        except BaseException:
            self._remove()
            raise
        problem = self._remove()
        found = [*agents, *outcomes]
        bad = {each.node for each in agents if each.problem}
        shown = sorted({*nodes, *bad}, key=natural)
        name = self._namespace.name
        made = matrix.report(name, shown, results, found, self._notes, self._settings.keep)
        return msgspec.structs.replace(made, ok=made.ok and not problem)

    def _nodes(self) -> tuple[str, ...]:
        ready = [agent.node for agent in self._agents if agent.node_ready]
        if away := [agent.node for agent in self._agents if not agent.node_ready]:
            self._notes.append(f"nodes without pods, because not ready: {listed(away)}")
        if not ready:
            raise UsageError("no node is ready: see kubectl get nodes")
        chosen = spread(ready, self._settings.most_nodes)
        if len(chosen) < len(ready):
            self._notes.append(
                f"pods on {len(chosen)} of {count(len(ready), 'node')}: --max-nodes allows more"
            )
        return chosen

    def _check_agents(self) -> list[Outcome]:
        self._progress(f"asking {count(len(self._agents), 'agent')}")
        decode = decoder(AgentStatus)
        timeout = min(self._options.timeout, _AGENT_TIMEOUT)
        options = msgspec.structs.replace(self._options, timeout=timeout)
        answers = {
            answer.node: read(answer, _STATUS, decode)
            for answer in ask_all(self._client, self._agents, _STATUS, options)
        }
        rows = [node_status(agent, answers[agent.node]) for agent in self._agents]
        return [
            Outcome(plan.AGENT, row.node, row.problem,
                    f"kubectl pyproxy status --node {row.node}" if row.problem else "")
            for row in rows
        ]  # fmt: skip

    def _test(
        self, nodes: Sequence[str], image: str
    ) -> tuple[list[Outcome], Mapping[ConnectionTest, str]]:
        host_port = _FIRST_HOST_PORT + secrets.randbelow(_HOST_PORTS)
        pods = tuple(pods_of(nodes, host_port))
        name = self._namespace.name
        on = count(len(nodes), "node")
        self._progress(f"creating namespace {name}, {len(pods)} pods on {on}")
        self._create()
        self._namespace.create_pods(pods, image)
        found = self._namespace.wait_ready(pods, self._options.timeout, _Changes(self._progress))
        services = {
            made["metadata"]["name"]: self._namespace.create_service(made)
            for made in objects.services(host_port)
        }
        facts = Facts(
            tuple(each for each in pods if each.name in found.addresses),
            found.addresses,
            services,
            node_addresses(self._client, nodes),
        )
        tests = tuple(plan.tests(facts))
        self._progress(f"running {count(len(tests), 'test')}")
        results = self._pods.ask(tests, Question(self._settings.settle))
        if rollout := tests_of(results):
            self._progress("deleting an endpoint while clients connect")
            endpoints = [each for each in facts.pods if each.role == "rollout"]
            results |= roll_out(self._pods, self._namespace, rollout, endpoints)
        return _pod_outcomes(pods, found, name), results

    def _create(self) -> None:
        try:
            self._created = True
            self._namespace.create()
        except UsageError:
            self._created = False
            raise

    def _remove(self) -> str:
        if not self._created:
            return ""
        name = self._namespace.name
        if self._settings.keep:
            self._notes.append(f"kept: kubectl delete namespace {name} removes everything")
            return ""
        self._progress(f"removing namespace {name}")
        if problem := try_remove(self._namespace, self._options.timeout):
            self._progress(problem)
            self._notes.append(problem)
        return problem


class _Changes:
    """Reports the number of pods that are ready when it changes."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self._last = 0

    def __call__(self, ready: int) -> None:
        if ready != self._last:
            self._last = ready
            self._progress(f"{count(ready, 'pod')} ready or failed")


def _pod_outcomes(pods: Sequence[Pod], found: PodsFound, namespace: str) -> list[Outcome]:
    outcomes = []
    for each in pods:
        problem = found.problems.get(each.name, "")
        outcomes.append(
            Outcome(
                plan.PODS,
                each.node,
                f"pod {each.name} is not ready: {problem}" if problem else "",
                f"check again with --keep, then kubectl describe pod {each.name} -n {namespace}"
                if problem
                else "",
            )
        )
    return outcomes


def _image(agents: Sequence[Agent]) -> str:
    images = Counter(agent.image for agent in agents if agent.image)
    if not images:
        raise UsageError("no agent runs, so its image is not known: name one with --image")
    return images.most_common(1)[0][0]
