"""`kubectl pyproxy status` with simulated nodes, some of which do what a broken node does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kubectl.plugin import Nodes, Reply, node, pod, simulated, status_reply
from tests.waiting import until

CRASHED: dict[str, Any] = {
    "containerStatuses": [
        {
            "name": "pyproxy",
            "restartCount": 7,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        }
    ]
}
FEW = ("node-1", "node-2", "node-10")


@pytest.fixture
def few(tmp_path: Path) -> Iterator[Nodes]:
    with simulated(tmp_path, FEW) as nodes:
        yield nodes


def rows(nodes: Nodes, *words: str) -> dict[str, Any]:
    return {row["node"]: row for row in nodes.run("status", "-o", "json", *words).json["nodes"]}


def test_healthy_nodes_are_rows_in_natural_order(few: Nodes) -> None:
    found = few.run("status")
    lines = found.out.splitlines()
    assert (found.status, found.err) == (0, "")
    assert lines[0].split() == [
        "NODE", "VERSION", "MODE", "HEALTH", "LAG", "PENDING", "SERVICES", "INVALID", "DRIFT",
        "TABLES",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[1:4]] == list(FEW)
    assert lines[1].split()[1:] == ["0.1.0", "nftables", "healthy", "2.5", "s", "0", "100", "0",
                                    "none"]  # fmt: skip
    assert lines[-1] == "3 of 3 nodes healthy"
    assert {command for _, command in few.commands} == {
        ("pyproxy", "status", "--require-agent", "-o", "json")
    }


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(hangs=True), "no response within "),
        (Reply(fails="container not found"), "Internal error occurred: container not found"),
        (
            Reply(fails='exec: "pyproxy": executable file not found in $PATH'),
            "its pod has no pyproxy: image pyproxy:0.1.0",
        ),
        (Reply(status=3, errors=b"note\npyproxy: no agent listens\n"), "no agent listens"),
        (
            Reply(status=2, errors=b"pyproxy: unrecognized arguments: --require-agent"),
            "its pyproxy is older than this plugin",
        ),
        (Reply(status=137), "its command ended with status 137"),
        (Reply(b"\xff\xfe{"), "its answer is not understood"),
        (Reply(b"[]"), "its answer is not understood"),
        (Reply(b'{"services": "many"}'), "its answer is not understood"),
        (Reply(b"[" * 100_000), "its answer is not understood"),
        (Reply(b'{"services": %s}' % (b"9" * 100_000)), "its answer is not understood"),
        (Reply(b"x" * (1 << 16), repeat=200), "its answer is larger than 8 MiB"),
        (Reply(status=1, errors=b"\x1b]0;title\x07\x1b[2J"), "\\x1b]0;title\\x07\\x1b[2J"),
    ],
)
def test_a_node_without_an_answer_is_a_row_with_the_reason(
    few: Nodes, reply: Reply, reason: str
) -> None:
    few.replies["node-2"] = reply
    healthy = "2 of 3 nodes healthy"
    found = few.run_until(healthy, "status") if reply.hangs else few.run("status")
    assert found.status == 1
    assert "\x1b" not in found.out
    (row,) = [line for line in found.out.splitlines() if line.startswith("node-2 ")]
    assert reason in row
    assert healthy in found.out


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"healthy": False, "health": "unhealthy: a sync is overdue"}, "unhealthy: a sync is"),
        (
            {"healthy": False, "syncError": "nft did not load it"},
            "sync failed: nft did not load it",
        ),
        ({"node": "other"}, "it serves the node 'other': correct --hostname-override"),
        ({"sourceAge": 500.0}, "a watch has received nothing for minutes"),
    ],
)
def test_an_agent_with_a_problem_is_not_healthy(
    few: Nodes, fields: dict[str, Any], problem: str
) -> None:
    few.replies["node-1"] = status_reply("node-1", **fields)
    found = few.run("status")
    assert found.status == 1
    assert f"1 node (node-1): {problem}" in found.out


def test_only_the_most_frequent_problems_are_repeated(few: Nodes) -> None:
    names = [f"bad-{number}" for number in range(12)]
    few.server.load([node(name) for name in names])
    few.server.load([pod(name) for name in names])
    few.replies |= {name: Reply(fails=f"task {name} not found") for name in names}
    few.replies["bad-1"] = few.replies["bad-2"]
    lines = few.run("status").out.splitlines()
    assert lines[18].startswith("2 nodes (bad-1, bad-2): ")
    assert lines[-1] == "1 other problem: see the rows"
    few.replies |= {name: status_reply(name, services=n) for n, name in enumerate(names)}
    lines = few.run("status").out.splitlines()
    assert lines[-1] == "2 other differences: see the rows"


def test_differences_between_nodes_are_named(few: Nodes) -> None:
    few.replies["node-2"] = status_reply("node-2", version="1.2.0", services=99, mode="ipvs")
    found = few.run("status")
    assert found.status == 0
    assert "version: 1 node has 1.2.0 (node-2), most have 0.1.0" in found.out
    assert "services: 1 node has 99 (node-2), most have 100" in found.out
    assert "mode: 1 node has ipvs (node-2), most have nftables" in found.out


def test_drift_invalid_objects_and_full_tables_are_shown(few: Nodes) -> None:
    few.replies["node-2"] = status_reply(
        "node-2",
        repairs=2,
        lastRepair={"ended": 1.0, "by": "firewalld", "counts": {}},
        invalid=[{"kind": "Service", "name": "shop/web"}, {"kind": "Service", "name": "shop/web"}],
        tables=[{"name": "a", "used": 5, "limit": None}, {"name": "b", "used": 90, "limit": 100}],
    )
    row = next(each for each in few.run("status").out.splitlines() if "node-2 " in each)
    assert row.split()[-7:] == ["100", "1", "2", "repairs", "(firewalld)", "b", "90%"]


def test_answers_of_other_versions_are_read(few: Nodes) -> None:
    few.replies["node-1"] = Reply(b'{"healthy": true, "unknown": [1]}')
    row = rows(few)["node-1"]
    assert (row["problem"], row["version"]) == ("", "")


def test_output_for_programs_has_no_control_characters(few: Nodes) -> None:
    few.replies["node-1"] = status_reply("node-1", version="1\x9b31m\u202e\x1b[2J")
    for form in ("json", "yaml"):
        found = few.run("status", "-o", form)
        assert all(each.isprintable() or each == "\n" for each in found.out)


@pytest.mark.parametrize(
    ("objects", "problem"),
    [
        ([], "no agent: the node has no such pod"),
        ([pod("new", phase="Pending")], "pod pyproxy-new: Pending"),
        ([pod("new", phase="Failed", reason="Evicted")], "pod pyproxy-new: Evicted"),
        ([pod("new", **CRASHED)], "pod pyproxy-new: CrashLoopBackOff, 7 restarts"),
        (
            [pod("new", **CRASHED), pod("new", "kube-proxy-x", {"k8s-app": "kube-proxy"})],
            "pod pyproxy-new: CrashLoopBackOff, 7 restarts",
        ),
        (
            [pod("new", conditions=[{"type": "Ready", "status": "False"}])],
            "healthy, but its pod is not ready",
        ),
        ([pod("new", "old", phase="Succeeded"), pod("new", "good")], ""),
        ([pod("new", "kube-proxy-x", {"k8s-app": "kube-proxy"})], ""),
    ],
)
def test_nodes_without_a_running_agent(few: Nodes, objects: list[Any], problem: str) -> None:
    few.server.load([node("new"), *objects])
    found = rows(few)["new"]
    assert found["problem"] == problem


def test_the_reason_names_a_node_that_is_not_ready(few: Nodes) -> None:
    few.server.load([node("down", ready=False), pod("down")])
    few.replies["down"] = Reply(hangs=True)
    found = rows(few, "--timeout", "0.5")["down"]
    assert found["problem"] == "no response within 0.5 s; the node is not ready"


def test_a_node_that_hangs_is_not_waited_for_to_the_limit(tmp_path: Path) -> None:
    names = [f"node-{number}" for number in range(1, 21)]
    with simulated(tmp_path, names) as nodes:
        nodes.replies |= {name: Reply(hangs=True) for name in names[:2]}
        outputs = [""]

        def is_given_up_early() -> bool:
            outputs.append(nodes.run("status").out)
            hanging = r"2 nodes \(node-1, node-2\): no response within [3-9] s\n"
            healthy = "18 of 20 nodes healthy" in outputs[-1]
            return healthy and bool(re.search(hanging, outputs[-1]))

        # The limit is 10 s, which a busy machine's healthy nodes may bring about.
        until(is_given_up_early, lambda: outputs[-1])


def test_windows_nodes_are_left_out(few: Nodes) -> None:
    few.server.load([node("windows", labels={"kubernetes.io/os": "windows"})])
    assert set(rows(few)) == set(FEW)


def test_some_nodes_can_be_chosen(few: Nodes) -> None:
    twice = ("--node", "node-2", "--node", "node-10", "--node", "node-2")
    assert set(rows(few, *twice)) == {"node-2", "node-10"}
    assert len(few.commands) == 2
    found = few.run("status", "--node", "missing")
    assert (found.status, found.err) == (
        2,
        "kubectl pyproxy: --node missing: the cluster has no such node\n",
    )


def test_the_agents_container_is_asked_beside_others(few: Nodes) -> None:
    """A DaemonSet of kubeadm whose image was replaced, in a cluster that injects containers."""
    swapped = pod("swapped", "kube-proxy-x", {"k8s-app": "kube-proxy"})
    swapped["spec"]["containers"] = [
        {"name": name, "image": "i:1"} for name in ("sidecar", "kube-proxy")
    ]
    few.server.load([node("swapped"), swapped])
    assert rows(few, "--node", "swapped")["swapped"]["problem"] == ""
    assert few.containers == {"kube-proxy"}


def test_other_pods_can_be_chosen(few: Nodes) -> None:
    few.server.load([pod("node-1", "mine", {"app": "mine"})])
    found = rows(few, "--selector", "app=mine")
    assert (found["node-1"]["pod"], found["node-2"]["answered"]) == ("mine", False)
    nothing = few.run("status", "-n", "default")
    assert nothing.status == 2
    assert "no pod in namespace default has the labels" in nothing.err


def test_a_thousand_nodes(tmp_path: Path) -> None:
    """All nodes have a row, whatever some of them do, and the connections are bounded."""
    names = [f"node-{number}" for number in range(1, 1001)]
    with simulated(tmp_path, names) as nodes:
        broken = {
            # Nodes that hang until all others have been asked.
            **{name: Reply(after=980, fails="late") for name in names[:20]},
            **{name: Reply(b"\x1b[2J\xff" * 1000) for name in names[100:110]},
            **{name: Reply(b"x" * (1 << 16), repeat=1 << 20) for name in names[200:202]},
            **{name: Reply(fails="gone") for name in names[300:310]},
            **{name: status_reply(name, version="0.0.9") for name in names[400:403]},
        }
        nodes.replies |= broken
        # Without a limit, a busy machine's nodes might take longer than the first ones.
        found = nodes.run("status", "--timeout", "120", terminal=True)
        # 64 nodes, and those that are slow; one may end for the plugin before the server.
        assert nodes.server.exec.most <= 256
        assert len(nodes.commands) == 1000
    lines = found.out.splitlines()
    assert {line.split()[0] for line in lines[1:1001]} == set(names)
    assert found.status == 1
    assert "958 of 1,000 nodes healthy" in found.out
    late = r"20 nodes \(node-1, node-2, node-3 and 17 more\): .*late\n"
    assert re.search(late, found.out)
    assert "2 nodes (node-201, node-202): its answer is larger than 8 MiB" in found.out
    assert (
        "version: 3 nodes have 0.0.9 (node-401, node-402, node-403), most have 0.1.0" in found.out
    )
    assert "\rasked" not in found.out
    assert "asked 1,000 of 1,000 nodes" in found.err
    assert found.err.endswith("\r\x1b[K")
