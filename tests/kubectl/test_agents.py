"""The plugin with the agents of ten nodes, asked by exec over WebSocket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgspec
import pytest
from pyproxy_lab import wiring
from pyproxy_lab.client import ENDPOINT_SLICES, PODS, SERVICES, collection
from pyproxy_lab.cluster import Cluster
from pyproxy_lab.process import Agent
from pyproxy_lab.topology import TWO_NODES, numbered_pod, numbered_site

from tests.agent.live import endpoint_slice, service
from tests.kubectl.plugin import Result, run
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel

TEN = msgspec.structs.replace(
    TWO_NODES,
    sites=tuple(numbered_site(number) for number in range(1, 11)),
    # A bridge without any pod has no carrier.
    pods=tuple(numbered_pod(f"{site}1", number, 11) for number, site in ((1, "a"), (5, "e"))),
)
NODES = [site.node for site in TEN.sites]
FEW_AT_ONCE = ("--parallel", "3", "--timeout", "30")
"""Ten commands at once would be slow on a busy machine."""


class Cluster10:
    """Ten nodes with their agents, and the plugin beside the API server."""

    def __init__(self, cluster: Cluster, agents: dict[str, Agent]) -> None:
        self.cluster = cluster
        self.agents = agents
        self.kubeconfig = str(cluster.kubeconfig())

    def run(self, *words: str) -> Result:
        return self.cluster.network.api.call(lambda: run(*words, "--kubeconfig", self.kubeconfig))

    def wait_programmed(self, *without: str) -> None:
        for name, agent in self.agents.items():
            if name not in without:
                self.cluster.barrier(name, agent).wait()

    @contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        os.kill(self.agents[name].pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.agents[name].pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def ten() -> Iterator[Cluster10]:
    with Cluster(TEN) as cluster, ExitStack() as stack:
        agents = {site.name: stack.enter_context(cluster.agent(site.name)) for site in TEN.sites}
        for name in agents:
            cluster.add_agent_pod(name)
        cluster.client.ensure("/api/v1/namespaces", {"metadata": {"name": "shop"}})
        web = service("web", "10.96.0.20", selector={"app": "web"})
        cluster.client.create(collection("shop", SERVICES), web)
        made = Cluster10(cluster, agents)
        cluster.client.create(
            collection("shop", ENDPOINT_SLICES), endpoint_slice("web", ["10.244.1.11"])
        )
        pod = {
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "i:1"}]},
        }
        cluster.client.create(collection("shop", PODS), pod)
        made.wait_programmed()
        yield made


def test_all_agents_are_healthy(ten: Cluster10) -> None:
    found = ten.run("status", *FEW_AT_ONCE)
    assert found.status == 0, found.out
    assert "10 of 10 nodes healthy" in found.out
    assert [line.split()[:4] for line in found.out.splitlines()[1:11]] == [
        [node, "0.1.0", "nftables", "healthy"] for node in NODES
    ]


def test_a_node_that_differs_is_named(ten: Cluster10) -> None:
    """A rule that another program deletes on one node, whose agent is stopped meanwhile."""
    with ten.stopped("nc"):
        ten.cluster.network.namespace("nc").run(
            ["nft", "delete", "element", "inet", "pyproxy", "cluster-ips4", "{ 10.96.0.20 }"]
        )
        chosen = ("--node", "node-a", "--node", "node-b")
        same = ten.run("diff", *chosen, *FEW_AT_ONCE)
        # The stopped agent does not respond, so its node has no answer.
        hanging = ten.run("diff", "--node", "node-c", "--timeout", "1")
    assert (same.status, same.out) == (0, "all 2 nodes: the kernel state is the desired state\n")
    assert (hanging.status, hanging.out) == (
        1,
        "node-c: no answer: no response within 1 s\n",
    )
    until(lambda: ten.run("diff", "--node", "node-c").status == 0, "the agent repairs the drift")
    repaired = ten.run("status", "--node", "node-c", "-o", "json").json["nodes"][0]
    assert repaired["repairs"] == 1
    assert repaired["repairedAfter"].startswith("nft")


def test_stopped_killed_and_missing_agents_are_rows(ten: Cluster10) -> None:
    pods = collection("kube-system", PODS)
    ten.agents["nb"].stop()
    ten.cluster.client.delete(f"{pods}/pyproxy-nd", now=True)
    try:
        with ten.stopped("na"):
            # The command in the pod waits 12 s for its agent.
            found = ten.run("status", "-o", "json", "--parallel", "3", "--timeout", "60")
    finally:
        ten.cluster.add_agent_pod("nd")
        ten.agents["nb"].start()
        ten.wait_programmed()
    assert found.status == 1
    problems = {each["node"]: each["problem"] for each in found.json["nodes"] if each["problem"]}
    assert problems == {
        "node-a": "the agent on /run/pyproxy/pyproxy.sock did not respond",
        "node-b": "no agent listens on /run/pyproxy/pyproxy.sock",
        "node-d": "no agent: the node has no such pod",
    }


def test_explain_checks_the_selector_that_agents_cannot(ten: Cluster10) -> None:
    found = ten.run("explain", "10.96.0.20:80", "-o", "json", *FEW_AT_ONCE)
    assert found.status == 0, found.out
    (group,) = found.json["groups"]
    assert group["nodes"] == NODES
    steps = {each["name"]: each for each in group["explanation"]["steps"]}
    assert steps["selector"]["message"] == "app=web matches 1 pod: web-1"
    assert steps["kernel"]["result"] == "ok"


def test_explain_names_the_node_that_does_not_forward(ten: Cluster10) -> None:
    node = ten.cluster.network.namespace("ne")
    node.sysctl({"ipv4/ip_forward": 0})
    try:
        found = ten.run("explain", "shop/web", *FEW_AT_ONCE)
    finally:
        node.sysctl(wiring.ON_NODES)
    assert found.status == 1
    lines = found.out.splitlines()
    assert lines[0].startswith("9 nodes: no fault found")
    assert lines[1].startswith("node-e: ")
    assert "ip_forward" in lines[1]


def test_services_are_equal_on_all_nodes(ten: Cluster10) -> None:
    found = ten.run("services", "shop", *FEW_AT_ONCE)
    assert found.status == 0
    (row,) = found.out.splitlines()[1:]
    assert row.split()[:2] == ["shop", "web"]
    assert "all 10" in row


def test_trace_prints_the_output_of_one_node(ten: Cluster10) -> None:
    found = ten.run("trace", "--node", "node-b", "--to", "10.96.0.20:80")
    assert found.status == 0
    assert "delivered to 10.244.1.11:8080" in found.out
    assert "172.30.0.12 -> 10.96.0.20:80/tcp" in found.out
    wrong = ten.run("trace", "--node", "node-b", "--to", "10.96.0.20")
    assert wrong.status == 2
    assert "--to" in wrong.err


def test_a_live_trace_ends_with_the_plugin(ten: Cluster10) -> None:
    """A node does not end a command whose client is gone, so its input's end does."""
    words = ("-m", "pyproxy.kubectl", "trace", "--node", "node-b", "--to", "10.96.0.20:80")
    node = ten.cluster.network.namespace("nb")

    def traced() -> bool:
        return "pyproxy-trace" in node.run(["nft", "list", "tables"]).stdout

    process = ten.cluster.network.api.start(
        [sys.executable, *words, "--live", "--kubeconfig", ten.kubeconfig],
        output=subprocess.PIPE,
    )
    try:
        until(traced, "the trace runs")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    finally:
        process.kill()
        output, _ = process.communicate()
    assert b"waiting for packets until Ctrl-C" in output
    until(lambda: not traced(), "the trace has ended")
