"""The plan, matrix and JUnit report of `kubectl pyproxy check`, and the judgement of its pods."""

from __future__ import annotations

from collections import Counter
from xml.etree import ElementTree as ET

import pytest

from pyproxy.commands.output import Part, Table
from pyproxy.kubectl.check import matrix, objects, plan, pod
from pyproxy.kubectl.check.junit import junit
from pyproxy.kubectl.check.matrix import CheckReport, Outcome
from pyproxy.kubectl.check.plan import ConnectionTest, Facts, Service, Target
from pyproxy.kubectl.check.run import pods_of, spread

NODES = ("node-1", "node-2", "node-3")
PODS = tuple(pods_of(NODES, 20_000))


@pytest.mark.parametrize(
    ("total", "most", "chosen"),
    [
        (3, 3, ["n0", "n1", "n2"]),
        (3, 10, ["n0", "n1", "n2"]),
        (10, 3, ["n0", "n3", "n6"]),
        (100, 4, ["n0", "n25", "n50", "n75"]),
    ],
)
def test_nodes_are_spread(total: int, most: int, chosen: list[str]) -> None:
    assert list(spread([f"n{number}" for number in range(total)], most)) == chosen


def test_pods_have_no_more_rights_than_restricted_permits() -> None:
    for each in PODS:
        spec = objects.pod(each, "i")["spec"]
        (container,) = spec["containers"]
        assert spec["nodeName"] == each.node
        assert spec["hostNetwork"] == (each.role == "host")
        assert not spec["automountServiceAccountToken"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not container["securityContext"]["allowPrivilegeEscalation"]


def facts(*missing: str, families: tuple[str, ...] = ("10.96.0.{}", "fd00::{}")) -> Facts:
    """The facts of three nodes, without some pods."""
    names = [each["metadata"]["name"] for each in objects.services(20_000)]
    pods = tuple(each for each in PODS if each.name not in missing)
    return Facts(
        pods,
        {each.name: (f"10.244.0.{number}",) for number, each in enumerate(pods, 10)},
        {
            name: Service(tuple(each.format(number) for each in families), 30_000 + number)
            for number, name in enumerate(names)
        },
        {node: (f"172.30.0.{number}",) for number, node in enumerate(NODES, 1)},
    )


def test_every_test_is_made_from_every_node() -> None:
    found = list(plan.tests(facts()))
    by_test: dict[str, set[str]] = {}
    for each in found:
        by_test.setdefault(each.name, set()).add(each.node)
    assert set(by_test) == set(matrix.ORDER) - {plan.AGENT, plan.PODS}
    assert all(nodes == set(NODES) for nodes in by_test.values())
    assert {each.target.address for each in found if each.name == plan.CLUSTER} == {
        "10.96.0.0",
        "fd00::0",
    }


def test_each_node_is_the_other_node_of_one_node() -> None:
    asked = {
        (each.node, each.target.address)
        for each in plan.tests(facts())
        if each.name == plan.OTHER_PORT
    }
    assert asked == {
        ("node-1", "172.30.0.2"),
        ("node-2", "172.30.0.3"),
        ("node-3", "172.30.0.1"),
    }


def test_pods_that_are_not_ready_are_not_expected_to_answer() -> None:
    found = list(plan.tests(facts("server-2", "host-3")))
    assert {each.target.names for each in found if each.name == plan.CLUSTER} == {
        ("node-1", "node-3")
    }
    assert not any(each.pod in {"server-2", "host-3"} for each in found)
    assert not any(each.name == plan.INTERNAL and each.node == "node-2" for each in found)
    assert {each.target.names for each in found if each.name == plan.HOST} == {
        ("host node-1", "host node-2")
    }


def test_endpoints_of_one_family_are_tested_in_that_family() -> None:
    assert {each.target.address for each in plan.tests(facts()) if each.name == plan.HOST} == {
        "10.96.0.5"
    }


def test_one_node_has_no_other_node() -> None:
    one = Facts(
        tuple(each for each in PODS if each.node == "node-1" and each.role != "rollout"),
        dict.fromkeys(("server-1", "client-1", "host-1"), ("10.244.0.9",)),
        facts().services,
        {"node-1": ("172.30.0.1",)},
    )
    names = {each.name for each in plan.tests(one)}
    assert not names & {plan.OTHER_PORT, plan.OTHER_LOCAL, plan.ROLLOUT}


AB = {"names": ["a", "b"]}


@pytest.mark.parametrize(
    ("target", "seen", "failed", "problem"),
    [
        (AB, {"a": 5}, {}, ""),
        (AB, {"a": 5, "x": 1}, {}, "answered by x"),
        (AB, {"a": 4}, {pod.LOST: 2}, "2 of 6 no response"),
        (AB, {}, {pod.REFUSED: 2}, "2 of 2 connection refused"),
        (AB | {"all": True}, {"a": 1, "b": 1}, {}, ""),
        (AB | {"all": True}, {"a": 30}, {}, "never answered by b in 30 connections"),
        (AB | {"one": True}, {"a": 8}, {}, ""),
        (AB | {"one": True}, {"a": 4, "b": 4}, {}, "one client was answered by a, b"),
        ({"refused": True}, {}, {pod.REFUSED: 2}, ""),
        ({"refused": True}, {}, {pod.LOST: 2}, "2 of 2 no response"),
        ({"refused": True}, {}, {"no route to host": 1}, "1 of 1 no route to host"),
        ({"refused": True}, {"a": 2}, {}, "answered by a"),
    ],
)
def test_outcomes_are_judged(
    target: pod.Target, seen: dict[str, int], failed: dict[str, int], problem: str
) -> None:
    assert pod.judge(target, Counter(seen), Counter(failed)) == problem


def one_test(name: str, node: str, *, to: str = "node-2") -> ConnectionTest:
    service = "" if name == plan.POD_ADDRESS else "cluster"
    return ConnectionTest(
        name, plan.FROM_POD, node, "client-1", service, Target("fd00::1", 80, 2, names=(to,))
    )


def reported(*, kept: bool = False) -> CheckReport:
    """A report in which everything to and from node-2 has failed."""
    results = {
        one_test(plan.POD_ADDRESS, "node-1"): "2 of 2 no response",
        one_test(plan.POD_ADDRESS, "node-1", to="node-1"): "",
        one_test(plan.POD_ADDRESS, "node-2"): "2 of 2 no response",
        one_test(plan.CLUSTER, "node-1"): "2 of 7 no response",
        one_test(plan.EMPTY, "node-1"): "",
    }
    agents = [
        Outcome(plan.AGENT, "node-1", ""),
        Outcome(plan.AGENT, "node-2", "no response within 9 s\x1b", "look"),
    ]
    return matrix.report("ns", ("node-1", "node-2"), results, agents, ("a note",), kept)


def plain(parts: list[Part]) -> list[str]:
    return [
        " ".join(cell.plain for cell in row)
        for each in parts
        if isinstance(each, Table)
        for row in each.rows
    ] + [each.plain for each in parts if not isinstance(each, Table)]


def test_the_matrix_names_nodes_and_what_to_do_next() -> None:
    found = reported()
    assert not found.ok
    assert plain(list(matrix.show(found))) == [
        "agent  ✓ ✗",
        "pod address, no Service pod ✗ ✗",
        "cluster IP pod ✗ -",
        "no endpoints pod ✓ -",
        "",
        f"not tested: {plan.HEADLESS}: {matrix.SKIPPED[plan.HEADLESS]}",
        "a note",
        "all failed connections without a Service are from or to pods of node-2: begin there",
        "node-2: agent: no response within 9 s\N{REPLACEMENT CHARACTER}",
        "    next: look",
        "node-1: pod address, no Service from pod to [fd00::1]:80/tcp: 2 of 2 no response",
        "    the same in 1 other test: cluster IP",
        "    next: check again with --keep, then kubectl pyproxy explain NAMESPACE/cluster "
        "--node node-1",
        "node-2: pod address, no Service from pod to [fd00::1]:80/tcp: 2 of 2 no response",
        "    next: check again with --keep, then kubectl pyproxy explain NAMESPACE/cluster "
        "--node node-2",
        "4 of 6 results failed: node-2, node-1",
    ]


def test_with_kept_objects_the_next_command_is_complete() -> None:
    assert {each.next for each in reported(kept=True).failures if each.source} == {
        "kubectl pyproxy explain ns/cluster --node node-1",
        "kubectl pyproxy explain ns/cluster --node node-2",
    }


def test_junit_has_a_case_for_each_cell() -> None:
    suite = ET.fromstring(junit(reported()))
    counts = {name: suite.get(name) for name in ("tests", "failures", "skipped")}
    assert counts == {"tests": "7", "failures": "4", "skipped": "1"}
    failed = {
        (case.get("classname"), case.get("name")): failure.get("message")
        for case in suite
        if (failure := case.find("failure")) is not None
    }
    assert failed == {
        ("node-2", "agent"): "no response within 9 s\N{REPLACEMENT CHARACTER}",
        ("node-1", "pod address, no Service from pod"): "2 of 2 no response",
        ("node-2", "pod address, no Service from pod"): "2 of 2 no response",
        ("node-1", "cluster IP from pod"): "2 of 7 no response",
    }
