"""Restarts under load: the rules serve without an agent, and correct rows are not written."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest
from pyproxy_lab.cluster import Cluster
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.process import Agent, agent_command

from tests.agent.live import addresses, endpoint_slice, service
from tests.chaos.kernel_agent import Snapshot, snapshot
from tests.chaos.load import LoadResult, load
from tests.chaos.objects import create, set_ingress
from tests.waiting import until

pytestmark = pytest.mark.packets

NODE = "na"
HEALTH_PORT = 10256
RESTARTS = 5
"""After SIGKILL, and as many after SIGTERM."""

RATE = 300
"""Connections a second, from each of the two clients."""

BALANCED, NODE_PORT = "192.0.2.80", 30080
FROM_POD = [f"10.96.7.{number}:80" for number in (1, 2, 3, 4)]
FROM_OUTSIDE = [f"{BALANCED}:80", f"172.30.0.11:{NODE_PORT}"]


@pytest.fixture(scope="module")
def served(cluster: Cluster) -> Cluster:
    """Return a cluster with Services of 1, 2 and 3 endpoints, with affinity, and external."""
    client = cluster.client
    for made, pods in (
        (service("one", "10.96.7.1"), ["b1"]),
        (service("two", "10.96.7.2"), ["a2", "b1"]),
        (
            service("affinity", "10.96.7.3", sessionAffinity="ClientIP"),
            ["a2", "b1", "b2"],
        ),
        (service("balanced", "10.96.7.4", NODE_PORT, type="LoadBalancer"), ["a2", "b2"]),
    ):
        create(client, made, endpoint_slice(made["metadata"]["name"], addresses(*pods)))
    set_ingress(client, "balanced", BALANCED)
    return cluster


def is_healthy(namespace: Namespace) -> bool:
    def ask() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", HEALTH_PORT, timeout=2)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    return namespace.call(ask)


@contextmanager
def running(cluster: Cluster, *flags: str, ended_by: int = signal.SIGTERM) -> Iterator[Agent]:
    """Run an agent from its first commit until it ends by a signal."""
    site = cluster.network.topology.site(NODE)
    command = [*agent_command(site, cluster.kubeconfig()), *flags]
    namespace = cluster.network.namespace(NODE)
    with Agent(namespace, command, cluster.folder / f"agent-{NODE}.log") as agent:
        until(lambda: is_healthy(namespace) or agent.status is not None, "the agent's first commit")
        agent.require_alive()
        yield agent
        agent.require_alive()
        os.killpg(agent.pid, ended_by)
        until(lambda: agent.status is not None, "the agent's end")
        assert agent.status == (0 if ended_by == signal.SIGTERM else -ended_by)


@contextmanager
def loaded(cluster: Cluster) -> Iterator[list[LoadResult]]:
    """Open connections from a pod and from outside during the block; none may fail."""
    began = time.monotonic()
    with ExitStack() as stack:
        results = [
            stack.enter_context(load(cluster.network.namespace("a1"), RATE, FROM_POD)),
            stack.enter_context(load(cluster.network.namespace("ext"), RATE, FROM_OUTSIDE)),
        ]
        yield results
    seconds = time.monotonic() - began
    print(f"{sum(each.answered for each in results)} connections in {seconds:.1f} s: {results}")
    assert [each.failed for each in results] == [{}, {}]


def kernel_state(cluster: Cluster) -> Snapshot:
    return snapshot(cluster.network.namespace(NODE))


def test_no_connection_fails_through_restarts(served: Cluster) -> None:
    with running(served):
        before = kernel_state(served)
    with loaded(served):
        for _ in range(RESTARTS):
            for ended_by in (signal.SIGKILL, signal.SIGTERM):
                with running(served, ended_by=ended_by):
                    pass
    assert kernel_state(served) == before


OPTIONS: Sequence[Sequence[str]] = (
    (),
    ("--masquerade-all",),
    ("--iptables-masquerade-bit=15",),
    ("--iptables-masquerade-bit=3", "--masquerade-all"),
    ("--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cbr0"),
    (),
)


def test_no_connection_fails_when_other_options_take_over(served: Cluster) -> None:
    with running(served):
        before = kernel_state(served)
    with loaded(served):
        for flags in OPTIONS:
            with running(served, *flags):
                pass
    assert kernel_state(served) == before


OLDER = """
add chain inet pyproxy ruleset-older
delete chain inet pyproxy {marker}
delete chain inet pyproxy {seal}
add chain inet pyproxy older-hook {{ type filter hook forward priority 5; policy accept; }}
add chain inet pyproxy older-pick
add rule inet pyproxy older-hook ct state established counter
add rule inet pyproxy older-pick goto cluster4-2
add set inet pyproxy older-set {{ type ipv4_addr; }}
add rule inet pyproxy older-hook ip daddr @older-set counter
delete element inet pyproxy services4 {{ 10.96.7.2 . tcp . 80 }}
add element inet pyproxy services4 {{ 10.96.7.2 . tcp . 80 : goto older-pick }}
flush chain inet pyproxy services
add rule inet pyproxy services ip daddr @node-port-addresses4 \
    meta l4proto . th dport vmap @node-ports4
add rule inet pyproxy services ip daddr . meta l4proto . th dport vmap @services4
"""
"""The same sets with other rules, as an older version might leave them."""


def test_no_connection_fails_when_an_older_version_s_table_is_taken_over(served: Cluster) -> None:
    with running(served):
        before = kernel_state(served)
    named = {name.partition("-")[0]: name for name in before.layout.chains}
    text = OLDER.format(marker=named["ruleset"], seal=named["loaded"])
    with loaded(served):
        for _ in range(3):
            served.network.namespace(NODE).run(["nft", "-f", "-"], text=text)
            with running(served):
                pass
    assert kernel_state(served) == before


def test_an_unchanged_restart_writes_nothing(served: Cluster) -> None:
    with running(served):
        before = kernel_state(served)
    namespace = served.network.namespace(NODE)
    monitor = namespace.start(["nft", "monitor"], output=subprocess.PIPE)
    stdout = monitor.stdout
    assert stdout is not None
    try:
        # nft monitor prints nothing when it starts to listen, so write until it prints a table.
        os.set_blocking(stdout.fileno(), False)
        output = bytearray()

        def printed(word: bytes) -> bool:
            output.extend(stdout.read() or b"")
            namespace.run(
                ["nft", f"add table inet {word.decode()}; delete table inet {word.decode()}"]
            )
            return b"add table inet " + word in output

        until(lambda: printed(b"begin"), "nft monitor listens")
        for ended_by in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
            with running(served, ended_by=ended_by):
                pass
        until(lambda: printed(b"end"), "nft monitor prints the end")
        lines = {line for line in output.decode().splitlines() if "table inet begin" not in line}
        about_us = [line for line in lines if "pyproxy" in line]
        assert not about_us
    finally:
        monitor.kill()
        monitor.wait()
        stdout.close()
    assert kernel_state(served) == before
