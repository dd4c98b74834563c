"""`kubectl pyproxy explain` with simulated nodes: groups, and the selector step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.live import service
from tests.kubectl.plugin import Nodes, Reply, simulated

NODES = tuple(f"node-{number}" for number in range(1, 13))
SKIPPED = {"name": "selector", "result": "skipped", "message": "pods not queried: no permission"}
POLICY = {"name": "policy", "result": "ok", "message": "this node sends to 2 endpoints"}


def explanation(*steps: dict[str, Any], **fields: Any) -> Reply:
    """The answer of an agent: the first failed step is the verdict."""
    failed = next((step for step in steps if step["result"] == "failed"), None)
    verdict = failed["message"] if failed else "no fault found; checked: agent"
    answer = {
        "target": "shop/web",
        "ok": failed is None,
        "verdict": verdict,
        "fix": failed.get("fix", "") if failed else "",
        "steps": steps,
        **fields,
    }
    return Reply(json.dumps(answer).encode(), status=1 if failed else 0)


def routes(message: str) -> dict[str, Any]:
    return {"name": "routes", "result": "failed", "message": message, "fix": "add the route"}


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with simulated(tmp_path, NODES) as made:
        made.replies |= {name: explanation(POLICY) for name in NODES}
        yield made


def test_equal_answers_are_one_line(nodes: Nodes) -> None:
    nodes.replies["node-7"] = explanation(POLICY, routes("no route to 10.244.3.0/24"))
    found = nodes.run("explain", "shop/web", "--from", "192.0.2.1")
    assert found.status == 1
    assert found.out.splitlines()[:3] == [
        "11 nodes: no fault found",
        "node-7: no route to 10.244.3.0/24",
        "    fix: add the route",
    ]
    assert nodes.commands[0][1] == (
        "pyproxy", "explain", "shop/web", "--from", "192.0.2.1", "--require-agent", "-o", "json",
    )  # fmt: skip


def test_a_nodes_own_name_and_durations_do_not_divide_a_group(nodes: Nodes) -> None:
    for number, name in enumerate(NODES):
        nodes.replies[name] = explanation(routes(f"nothing for {120 + number} s on {name}"))
    found = nodes.run("explain", "shop/web")
    assert found.out.splitlines()[0] == "all 12 nodes: nothing for N s on NODE"


def test_without_a_fault_the_status_is_0(nodes: Nodes) -> None:
    found = nodes.run("explain", "shop/web", "-o", "json")
    assert (found.status, found.json["ok"]) == (0, True)
    (group,) = found.json["groups"]
    assert (group["nodes"], group["explanation"]["steps"][0]["name"]) == (list(NODES), "policy")


def test_steps_are_shown_once_per_group_if_wanted(nodes: Nodes) -> None:
    nodes.replies["node-7"] = explanation(routes("no route"))
    found = nodes.run("explain", "shop/web", "--verbose").out
    assert found.count("✓   policy") == 1
    assert "11 nodes, as node-1 answers:" in found
    assert "✗   routes" in found


def test_one_node_shows_its_whole_answer(nodes: Nodes) -> None:
    found = nodes.run("explain", "shop/web", "--node", "node-3")
    assert "✓   policy   this node sends to 2 endpoints" in found.out


def test_nodes_without_a_fault_name_the_steps_that_are_open(nodes: Nodes) -> None:
    probes = {"name": "probes", "result": "skipped", "message": "not checked: without --probe"}
    routes = {"name": "routes", "result": "undecided", "message": "by a mark"}
    nodes.replies |= {name: explanation(POLICY, probes) for name in NODES}
    nodes.replies["node-2"] = explanation(POLICY, routes, probes)
    lines = nodes.run("explain", "shop/web").out.splitlines()
    assert lines[:2] == [
        "11 nodes: no fault found; not checked: probes",
        "node-2: no fault found; not checked: probes; undecided: routes",
    ]


def test_nodes_without_an_answer_are_a_group(nodes: Nodes) -> None:
    nodes.replies["node-2"] = Reply(hangs=True)
    nodes.replies["node-3"] = Reply(hangs=True)
    silent = "node-2, node-3: no answer: no response within N s"
    found = nodes.run_until(silent, "explain", "shop/web")
    assert found.status == 1
    assert silent in found.out


def test_steps_of_newer_agents_are_shown(nodes: Nodes) -> None:
    new = {"name": "new", "result": "novel", "message": "a\x1b[2Jb", "more": 1}
    nodes.replies["node-1"] = explanation(new, another=True)
    found = nodes.run("explain", "shop/web", "--node", "node-1")
    assert "?   new    a\\x1b[2Jb" in found.out


def with_service(nodes: Nodes, *pods: str) -> None:
    labels = {"app": "web"}
    nodes.server.load([service("web", "10.96.0.20", 30080, selector=labels)])
    nodes.server.load(
        [
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": "shop", "labels": labels},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
                "status": {},
            }
            for name in pods
        ]
    )
    nodes.replies |= {name: explanation(SKIPPED, POLICY) for name in NODES}


@pytest.mark.parametrize("target", ["shop/web", "10.96.0.20:80", "172.30.0.11:30080"])
def test_the_selector_step_is_filled_in(nodes: Nodes, target: str) -> None:
    with_service(nodes, "web-1", "web-2")
    found = nodes.run("explain", target, "--verbose")
    assert found.status == 0
    assert "✓   selector   app=web matches 2 pods: web-1, web-2" in found.out
    assert "no fault found; checked: selector, policy" in found.out


def test_a_selector_without_pods_is_the_verdict(nodes: Nodes) -> None:
    with_service(nodes)
    found = nodes.run("explain", "shop/web")
    assert found.status == 1
    assert found.out.startswith(
        "all 12 nodes: the selector app=web matches no pod in namespace shop\n"
    )


@pytest.mark.parametrize("target", ["shop/other", "10.96.0.20:81", "10.96.0.20:80/udp"])
def test_without_a_service_the_agents_step_stays(nodes: Nodes, target: str) -> None:
    with_service(nodes, "web-1")
    found = nodes.run("explain", target, "--node", "node-1")
    assert "-   selector   pods not queried: no permission" in found.out


def test_a_wrong_target_is_an_error_before_any_question(nodes: Nodes) -> None:
    found = nodes.run("explain", "10.96.0.20:http")
    assert (found.status, nodes.commands) == (2, [])
