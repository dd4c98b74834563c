"""services, diff and top with simulated nodes: equal answers are one row."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyproxy_lab.namespace import with_default_signals

from tests.kubectl.plugin import Nodes, Reply, simulated
from tests.waiting import PATIENCE

NODES = tuple(f"node-{number}" for number in range(1, 6))


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with simulated(tmp_path, NODES) as made:
        yield made


def reply(answer: Any, status: int = 0) -> Reply:
    return Reply(json.dumps(answer).encode(), status=status)


def services(used: int, reason: str = "") -> Reply:
    ends = [{"address": "a", "usedBy": "all", "reason": ""}] * used
    ends += [{"address": "b", "usedBy": "", "reason": reason}] * (2 - used)
    port = {
        "name": "http", "family": "IPv4", "protocol": "TCP", "port": 80, "nodePort": 0,
        "frontends": [{"scope": "clusterIP", "address": "10.96.0.20", "port": 80, "use": "all"}],
        "endpoints": ends, "hints": "",
    }  # fmt: skip
    service = {
        "namespace": "shop", "name": "web", "internalPolicy": "Cluster",
        "externalPolicy": "Cluster", "ports": [port],
    }  # fmt: skip
    return reply({"services": [service], "named": False})


def test_services_have_a_row_for_each_difference(nodes: Nodes) -> None:
    nodes.replies |= {name: services(2) for name in NODES}
    nodes.replies["node-4"] = services(1, "not ready")
    found = nodes.run("services", "shop/web")
    rows = [line.split("   ") for line in found.out.splitlines()[1:]]
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
        ["shop", "web", "http 80/TCP", "10.96.0.20:80", "Cluster", "1/2", "node-4", "not ready"],
        ["shop", "web", "http 80/TCP", "10.96.0.20:80", "Cluster", "2/2", "4 nodes"],
    ]
    assert nodes.commands[0][1][:3] == ("pyproxy", "services", "shop/web")


def test_services_of_all_nodes_are_one_row_and_failures_are_named(nodes: Nodes) -> None:
    nodes.replies |= {name: services(2) for name in NODES}
    nodes.replies["node-1"] = Reply(status=3, errors=b"pyproxy: no agent listens")
    found = nodes.run("services", "shop")
    assert found.status == 1
    assert "all 4" in found.out.splitlines()[1]
    assert found.out.splitlines()[-1] == "1 node (node-1): no answer: no agent listens"
    assert nodes.commands[0][1][:4] == ("pyproxy", "services", "--namespace", "shop")


def test_all_services_of_many_nodes_need_a_flag(tmp_path: Path) -> None:
    many = [f"node-{number}" for number in range(60)]
    with simulated(tmp_path, many) as nodes:
        nodes.replies |= {name: services(2) for name in many}
        refused = nodes.run("services")
        assert (refused.status, nodes.commands) == (2, [])
        assert "all Services of 60 nodes may have gigabytes" in refused.err
        for words in (("-A",), ("shop",), ("--node", "node-1")):
            assert nodes.run("services", *words).status == 0


def test_nodes_in_step_are_one_line_of_diff(nodes: Nodes) -> None:
    same = {"same": True, "mode": "nftables", "pending": 0, "counts": {}, "lines": []}
    nodes.replies |= {name: reply(same) for name in NODES}
    assert nodes.run("diff").out == "all 5 nodes: the kernel state is the desired state\n"
    assert nodes.run("diff").status == 0


def test_different_nodes_show_their_lines(nodes: Nodes) -> None:
    same = {"same": True, "mode": "nftables", "pending": 0, "counts": {}, "lines": []}
    many = {**same, "same": False, "lines": [f"add element {number}" for number in range(50)]}
    nodes.replies |= {name: reply(same) for name in NODES}
    nodes.replies["node-1"] = nodes.replies["node-5"] = reply(many, status=1)
    found = nodes.run("diff")
    assert found.status == 1
    lines = found.out.splitlines()
    assert lines[0] == "node-2, node-3, node-4: the kernel state is the desired state"
    assert lines[1] == "node-1, node-5: 50 differences"
    assert lines[2] == "  add element 0"
    assert lines[-1] == "  and 30 more"


def sample(**rates: float) -> Reply:
    rows = [
        {"service": f"shop/{name}", "perSecond": rate, "total": int(rate * 10), "endpoint": ""}
        for name, rate in rates.items()
    ]
    return reply({"seconds": 2.0, "perSecond": sum(rates.values()), "rows": rows, "totalRows": 9})


def test_top_sums_over_nodes(nodes: Nodes) -> None:
    nodes.replies |= {name: sample(web=1.0, db=0.0) for name in NODES}
    nodes.replies["node-2"] = sample(web=6.0, db=20.0)
    found = nodes.run("top", "--once", "--interval", "0.5")
    rows = [line.split() for line in found.out.splitlines()[2:]]
    assert rows == [
        ["shop/db", "20.0", "200", "1", "node-2", "20.0"],
        ["shop/web", "10.0", "100", "5", "node-2", "6.0"],
    ]
    assert found.out.startswith("30.0 new connections per second on 5 nodes, each over 500.0 ms")
    assert nodes.commands[0][1][:7] == (
        "pyproxy", "top", "--once", "--rows", "0", "--interval", "0.5",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "first"),
    [(("--sort", "name"), "shop/db"), (("--sort", "total"), "shop/web"), ((), "shop/web")],
)
def test_top_sorts(nodes: Nodes, words: tuple[str, ...], first: str) -> None:
    nodes.replies |= {name: sample(web=1.0, db=0.5) for name in NODES}
    found = nodes.run("top", "--once", "--rows", "1", "-o", "json", *words).json
    assert ([row["service"] for row in found["rows"]], found["totalRows"]) == ([first], 2)


def test_top_repeats_until_it_is_interrupted(nodes: Nodes) -> None:
    nodes.replies |= {name: sample(web=1.0) for name in NODES}
    command = [sys.executable, "-m", "pyproxy.kubectl", "top", "--kubeconfig", str(nodes.path)]
    with subprocess.Popen(
        with_default_signals([*command, "--interval", "0.1"]), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        firsts = (line for line in process.stdout if b"per second on 5 nodes" in line)
        assert [line.split()[0] for line in itertools.islice(firsts, 2)] == [b"5.0", b"5.0"]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130


def test_top_names_a_node_without_an_answer(nodes: Nodes) -> None:
    nodes.replies |= {name: sample(web=1.0) for name in NODES}
    nodes.replies["node-3"] = Reply(status=2, errors=b"pyproxy: no counters")
    found = nodes.run("top", "--once")
    assert found.status == 1
    assert found.out.splitlines()[-1] == "1 node gave no answer; node-3: no counters"


def offloaded(**flows: int) -> Reply:
    rows = [
        {
            "service": f"shop/{name}", "flows": number, "packetsPerSecond": number * 10.0,
            "bytesPerSecond": number * 1000.0, "packets": number * 100, "bytes": number * 10_000,
        }
        for name, number in flows.items()
    ]  # fmt: skip
    return reply({"seconds": 2.0, "flows": sum(flows.values()), "rows": rows, "totalRows": 9})


def test_top_sums_offloaded_flows_over_nodes(nodes: Nodes) -> None:
    nodes.replies |= {name: offloaded(web=1) for name in NODES}
    nodes.replies["node-2"] = offloaded(web=6, db=20)
    nodes.replies["node-4"] = Reply(status=2, errors=b"pyproxy: no fast path")
    found = nodes.run("top", "--offloaded", "--once", "--interval", "0.5", "shop")
    first, _, *rows, failure = found.out.splitlines()
    assert found.status == 1
    assert first == (
        "29 offloaded flows on 4 nodes; 290.0 packets and 29,000 bytes per second, each over "
        "500.0 ms; showing 2 of 2 services"
    )
    assert [row.split() for row in rows] == [
        ["shop/db", "20", "200.0", "20,000", "2,000", "200,000", "1", "node-2"],
        ["shop/web", "9", "90.0", "9,000", "900", "90,000", "4", "node-2"],
    ]
    assert failure == "1 node gave no answer; node-4: no fast path"
    assert nodes.commands[0][1][:9] == (
        "pyproxy", "top", "--once", "--rows", "0", "--interval", "0.5", "--offloaded", "shop",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "first"),
    [(("--sort", "name"), "shop/db"), (("--sort", "total"), "shop/web"), ((), "shop/web")],
)
def test_top_sorts_offloaded_flows(nodes: Nodes, words: tuple[str, ...], first: str) -> None:
    nodes.replies |= {name: offloaded(web=2, db=1) for name in NODES}
    found = nodes.run("top", "--offloaded", "--once", "--rows", "1", "-o", "json", *words).json
    assert ([row["service"] for row in found["rows"]], found["totalRows"]) == ([first], 2)
    assert (found["flows"], found["failures"]) == (15, {})
