"""Rights, interruptions and removal of `kubectl pyproxy check`, with simulated pods."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyproxy_lab.apiserver import access
from pyproxy_lab.apiserver.exec import STDOUT, Request, Streams
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.client import ApiClient
from pyproxy_lab.namespace import with_default_signals

from tests.deploy.manifests import DEPLOY, objects, the
from tests.kubectl.plugin import Nodes, simulated, status_reply
from tests.kubectl.test_rights import Rights, assigned, user
from tests.waiting import PATIENCE, again_and_again, until

NAMES = ("node-1", "node-2")


def further() -> Rights:
    """The rights of check.yaml, as resource and verb."""
    found = objects((DEPLOY / "kubectl" / "check.yaml").read_text())
    return frozenset(
        (resource, verb)
        for rule in the("ClusterRole", found, "pyproxy-check")["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    )


class Simulation:
    """An API server whose pods get ready by themselves, and answer that nothing has failed."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.admin = ApiClient(nodes.server.url, "admin")
        nodes.server.exec.runner = self.answer

    def namespaces(self) -> list[str]:
        found = self.admin.get("/api/v1/namespaces")["items"]
        names = [each["metadata"]["name"] for each in found]
        return [name for name in names if name.startswith("pyproxy-check-")]

    def set_ready(self) -> None:
        for name in self.namespaces():
            path = f"/api/v1/namespaces/{name}/pods"
            for each in self.admin.get(path)["items"]:
                if not each["status"].get("conditions"):
                    status = {
                        "phase": "Running",
                        "podIP": "10.244.1.9",
                        "conditions": [{"type": "Ready", "status": "True"}],
                    }
                    self.admin.patch(f"{path}/{each['metadata']['name']}/status",
                                     {"status": status})  # fmt: skip

    async def answer(self, request: Request, streams: Streams) -> int:
        if request.command[0] == "pyproxy":
            reply = status_reply(request.pod["spec"]["nodeName"])
            await streams.write(STDOUT, reply.output)
            return 0
        await streams.stdin.readline()
        question = json.loads(await streams.stdin.readline())
        await asyncio.sleep(question["flood"])
        problems = [""] * len(question["targets"])
        await streams.write(STDOUT, json.dumps({"problems": problems}).encode())
        return 0


@contextmanager
def ready(simulation: Simulation) -> Iterator[None]:
    with again_and_again(simulation.set_ready, pause=0.05):
        yield


@pytest.fixture
def simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulation]:
    monkeypatch.setattr(access, "PROXY", user(assigned() | further()))
    settings = Settings(token="admin", proxy_token="t")
    with simulated(tmp_path, NAMES, settings) as nodes:
        yield Simulation(nodes)


def test_every_right_is_used_and_no_other_is_needed(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: set[tuple[str, str]] = set()
    authorize = access.authorize

    def record(who: access.User, action: access.Action) -> None:
        if who is access.PROXY:
            used.add((action.qualified, action.verb))
        authorize(who, action)

    monkeypatch.setattr(access, "authorize", record)
    with ready(simulation):
        found = simulation.nodes.run("check")
    assert found.status == 0, found.err
    assert further() <= used <= further() | assigned()


@pytest.mark.parametrize(
    "missing", sorted(further() - assigned() - {("namespaces", "get"), ("namespaces", "delete")})
)
def test_a_missing_right_is_one_line_and_nothing_remains(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, str]
) -> None:
    monkeypatch.setattr(access, "PROXY", user((assigned() | further()) - {missing}))
    resource, verb = missing
    with ready(simulation):
        found = simulation.nodes.run("check")
    if missing == ("pods", "delete"):
        # Only the rollout deletes a pod.
        assert "cannot delete an endpoint: " in found.out
        assert found.status == 1
    else:
        assert (found.status, found.out) == (2, "")
        line = found.err.splitlines()[-1]
        assert f'cannot {verb} resource "{resource}"' in line
        assert line.endswith("bind the roles of deploy/kubectl/check.yaml to this user")
    assert simulation.namespaces() == []


def test_a_namespace_that_cannot_be_removed_is_named(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    rights = (assigned() | further()) - {("namespaces", "delete")}
    monkeypatch.setattr(access, "PROXY", user(rights))
    found = simulation.nodes.run("check", "--timeout", "0.5")
    (name,) = simulation.namespaces()
    assert found.status == 1
    assert f"cannot remove namespace {name}: " in found.out


def test_pods_that_do_not_start_are_failures_with_their_reason(simulation: Simulation) -> None:
    found = simulation.nodes.run("check", "--timeout", "0.5")
    assert found.status == 1
    assert "node-1: pods: pod server-1 is not ready: Pending" in found.out
    # The plugin has deleted the namespace, and waits for its end no longer than for the pods.
    until(lambda: simulation.namespaces() == [], "nothing remains")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_check_removes_everything(
    simulation: Simulation, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "pyproxy.kubectl", "check"]
    process = subprocess.Popen(
        with_default_signals([*command, "--kubeconfig", str(simulation.nodes.path)]),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        until(simulation.namespaces)
        process.send_signal(number)
        out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (130, ""), errors
    assert simulation.namespaces() == []


def test_answers_of_pods_are_bounded_and_printable(simulation: Simulation) -> None:
    async def evil(request: Request, streams: Streams) -> int:
        if request.command[0] == "pyproxy":
            return await simulation.answer(request, streams)
        await streams.stdin.readline()
        targets = json.loads(await streams.stdin.readline())["targets"]
        if request.pod["metadata"]["name"].startswith("host"):
            for _ in range(32):
                await streams.write(STDOUT, b" " * (1 << 16))
        await streams.write(STDOUT, json.dumps({"problems": ["\x1b[2J\n"] * len(targets)}).encode())
        return 0

    simulation.nodes.server.exec.runner = evil
    with ready(simulation):
        found = simulation.nodes.run("check", "--node", "node-1")
    assert found.status == 1
    assert "\x1b" not in found.out
    assert "pod host-1: its answer is larger than 1 MiB" in found.out


def test_without_an_agents_image_one_must_be_named(simulation: Simulation) -> None:
    for name in NAMES:
        path = f"/api/v1/namespaces/kube-system/pods/pyproxy-{name}/status"
        simulation.admin.patch(path, {"status": {"phase": "Pending"}})
    found = simulation.nodes.run("check")
    assert (found.status, found.out) == (2, "")
    assert found.err == (
        "kubectl pyproxy: no agent runs, so its image is not known: name one with --image\n"
    )
