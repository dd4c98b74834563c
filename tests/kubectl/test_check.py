"""`kubectl pyproxy check` on a cluster of the lab: real agents, pods and packets."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from pyproxy_lab.cluster import Cluster
from pyproxy_lab.process import Agent
from pyproxy_lab.topology import TWO_NODES

from pyproxy.kubectl.check import plan
from tests.kubectl.plugin import Result, run
from tests.waiting import until

pytestmark = pytest.mark.packets

SITES = {"na": "node-a", "nb": "node-b"}
# A failing test costs what remains of this, so it is short where tests fail.
QUICKLY = ("--settle", "2")
PATIENTLY = ("--settle", "20")

SUSPECT = "all failed connections without a Service are from or to pods of node-b: begin there"

Marks = dict[tuple[str, str], list[str]]


class Checked:
    """A cluster with agents, a kubelet and a controller of slices, and the plugin beside it."""

    def __init__(self, cluster: Cluster, agents: dict[str, Agent]) -> None:
        self.cluster = cluster
        self.agents = agents
        self.kubeconfig = str(cluster.kubeconfig())

    def check(self, *words: str) -> Result:
        command = ("check", *words, "--kubeconfig", self.kubeconfig)
        return self.cluster.network.api.call(lambda: run(*command))

    def check_for(self, marks: Marks, line: str) -> Result:
        """Check quickly, and again patiently if a line or the marks of rows are not as expected."""
        found = self.check(*QUICKLY)
        if line not in found.out or wrong_rows(found, marks):
            found = self.check(*PATIENTLY)
        assert wrong_rows(found, marks) == {}, found.out
        assert line in found.out
        return found

    def namespaces(self) -> list[str]:
        found = self.cluster.client.get("/api/v1/namespaces")["items"]
        return [
            each["metadata"]["name"]
            for each in found
            if each["metadata"]["name"].startswith("pyproxy-check-")
        ]

    @contextmanager
    def without_forwarding(self, site: str) -> Iterator[None]:
        namespace = self.cluster.network.namespace(site)
        namespace.sysctl({"ipv4/ip_forward": 0, "ipv6/conf/all/forwarding": 0})
        try:
            yield
        finally:
            namespace.sysctl({"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1})

    @contextmanager
    def without_exec(self) -> Iterator[None]:
        assert self.cluster.server is not None
        handler = self.cluster.server.exec
        before, handler.runner = handler.runner, None
        try:
            yield
        finally:
            handler.runner = before

    @contextmanager
    def without_agent(self, site: str) -> Iterator[None]:
        agent = self.agents[site]
        os.killpg(agent.pid, signal.SIGKILL)
        until(lambda: agent.status is not None)
        try:
            yield
        finally:
            agent.start()
            self.cluster.barrier(site, agent).wait()


@pytest.fixture(scope="module")
def checked() -> Iterator[Checked]:
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(TWO_NODES))
        stack.enter_context(cluster.endpoint_slices())
        stack.enter_context(cluster.pod_runner())
        agents = {}
        for site in SITES:
            agents[site] = stack.enter_context(cluster.agent(site))
            cluster.add_agent_pod(site)
        for site, agent in agents.items():
            cluster.barrier(site, agent).wait()
        yield Checked(cluster, agents)


def test_a_healthy_cluster_passes_all_tests(checked: Checked, tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    found = checked.check("-o", "json", "--settle", "30", "--junit", str(file))
    assert found.status == 0, found.out
    assert found.json["ok"]
    assert found.json["nodes"] == list(SITES.values())
    rows = {(row["test"], row["source"]): row["results"] for row in found.json["rows"]}
    assert set(plan_rows()) == set(rows)
    assert all(each == dict.fromkeys(SITES.values(), "ok") for each in rows.values())
    suite = ET.parse(file).getroot()
    assert (suite.get("failures"), suite.get("tests")) == ("0", str(2 * len(rows) + 1))
    assert checked.namespaces() == []


def plan_rows() -> Iterator[tuple[str, str]]:
    yield from ((plan.AGENT, ""), (plan.PODS, ""))
    yield from ((plan.HAIRPIN, plan.FROM_SERVER), (plan.ROLLOUT, plan.FROM_POD))
    yield plan.OTHER_LOCAL, plan.FROM_NODE
    for test in (
        plan.POD_ADDRESS, plan.CLUSTER, plan.UDP, plan.INTERNAL, plan.AFFINITY, plan.EMPTY,
        plan.HOST, plan.OWN_PORT, plan.OTHER_PORT, plan.OWN_LOCAL,
    ):  # fmt: skip
        yield from ((test, plan.FROM_POD), (test, plan.FROM_NODE))


def test_a_node_whose_forwarding_is_off_is_named(checked: Checked) -> None:
    with checked.without_forwarding("nb"):
        found = checked.check_for(
            {(plan.POD_ADDRESS, plan.FROM_POD): ["✗", "✗"], (plan.AGENT, ""): ["✓", "✓"]},
            SUSPECT,
        )
    assert found.status == 1
    assert SUSPECT in found.out.splitlines()
    assert checked.namespaces() == []


def test_a_node_whose_agent_does_not_run_is_named(checked: Checked) -> None:
    with checked.without_agent("nb"):
        found = checked.check_for(
            {
                (plan.AGENT, ""): ["✓", "✗"],
                (plan.POD_ADDRESS, plan.FROM_POD): ["✓", "✓"],
                (plan.CLUSTER, plan.FROM_POD): ["✓", "✗"],
            },
            "node-b: agent: no agent listens on",
        )
    assert found.status == 1
    assert "next: kubectl pyproxy status --node node-b" in found.out


def test_pods_that_run_no_command_are_failures_and_are_removed(checked: Checked) -> None:
    with checked.without_exec():
        found = checked.check(*QUICKLY)
    assert found.status == 1
    assert row(found, plan.CLUSTER, plan.FROM_POD) == ["✗", "✗"]
    assert checked.namespaces() == []


def test_kept_objects_are_named_and_are_leftovers_of_the_next_check(checked: Checked) -> None:
    with checked.without_exec():
        found = checked.check("--keep", "--node", "node-a")
        (name,) = checked.namespaces()
        again = checked.check("--node", "node-a")
    assert f"kept: kubectl delete namespace {name} removes everything" in found.out
    assert f"kubectl pyproxy explain {name}/cluster --node node-a" in found.out
    services = checked.cluster.client.get(f"/api/v1/namespaces/{name}/services")["items"]
    assert {each["metadata"]["name"] for each in services} >= {"cluster", "local", "affinity"}
    assert f"namespace {name} is of another check" in again.out
    assert checked.namespaces() == [name]
    checked.cluster.client.delete(f"/api/v1/namespaces/{name}")


def wrong_rows(found: Result, marks: Marks) -> Marks:
    """Return the marks of those rows that have others than these."""
    return {key: seen for key, expected in marks.items() if (seen := row(found, *key)) != expected}


def row(found: Result, test: str, source: str = "") -> list[str]:
    """The marks of a row of the matrix."""
    for line in found.out.splitlines():
        columns = [each.strip() for each in line.split("   ") if each.strip()]
        if columns[:1] == [test] and (not source or columns[1:2] == [source]):
            return columns[2 if source else 1 :]
    raise AssertionError(found.out)
