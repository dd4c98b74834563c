"""`kubectl pyproxy status`: a row for each node, and the differences between nodes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from pyproxy.commands.arguments import add_output
from pyproxy.commands.output import BAD, DIM, GOOD, Part, Text, table, text
from pyproxy.inspect.humanize import count, duration
from pyproxy.kubectl import report
from pyproxy.kubectl.agents import find_agents
from pyproxy.kubectl.ask import Question, decoder, read
from pyproxy.kubectl.command import Command
from pyproxy.kubectl.fan_out import ask_all
from pyproxy.kubectl.node_status import (
    LAG_LIMIT,
    USAGE_LIMIT,
    AgentStatus,
    NodeStatus,
    node_status,
)
from pyproxy.kubectl.options import add_options, connect, options

_QUESTION = Question(("status",))
_NOTICE = "yellow"
_MOST_PROBLEMS = 10
_MOST_DIFFERENCES = 10

_COMPARED: Mapping[str, Callable[[NodeStatus], str]] = {
    "version": lambda row: row.version,
    "mode": lambda row: row.mode,
    "services": lambda row: f"{row.services:,}",
    "invalid objects": lambda row: f"{row.invalid_objects:,}",
}
"""Facts that are equal on all nodes of a cluster in order, as texts."""


class Difference(msgspec.Struct, frozen=True):
    """Nodes whose value of a fact is not that of most nodes."""

    fact: str
    value: str
    most: str
    nodes: tuple[str, ...]


class ClusterStatus(msgspec.Struct, frozen=True):
    """All nodes, and the facts in which they differ; `healthy` counts those without a problem."""

    healthy: int
    nodes: tuple[NodeStatus, ...]
    differences: tuple[Difference, ...]


def cluster_status(rows: Sequence[NodeStatus]) -> ClusterStatus:
    """Compare the nodes."""
    answered = [row for row in rows if row.answered]
    healthy = sum(not row.problem for row in rows)
    return ClusterStatus(healthy, tuple(rows), tuple(_differences(answered)))


def _differences(rows: Sequence[NodeStatus]) -> Iterator[Difference]:
    for fact, value_of in _COMPARED.items():
        by_value: dict[str, list[str]] = {}
        for row in rows:
            by_value.setdefault(value_of(row), []).append(row.node)
        ordered = sorted(by_value, key=lambda value: (-len(by_value[value]), value))
        for value in ordered[1:]:
            yield Difference(fact, value, ordered[0], tuple(by_value[value]))


def show(status: ClusterStatus) -> Iterator[Part]:
    """Yield a row for each node, those with a problem last, and what stands out below."""
    unusual = {(each.fact, each.value) for each in status.differences}
    rows = sorted(status.nodes, key=lambda row: bool(row.problem))
    yield table(
        ("NODE", "VERSION", "MODE", "HEALTH", "LAG", "PENDING", "SERVICES", "INVALID", "DRIFT",
         "TABLES"),
        (_row(row, unusual) for row in rows),
    )  # fmt: skip
    yield text("")
    total = len(rows)
    style = GOOD if status.healthy == total else BAD
    yield text(f"{status.healthy:,} of {count(total, 'node')} healthy", style)
    by_problem: dict[str, list[str]] = {}
    for row in rows:
        if row.problem:
            by_problem.setdefault(row.problem, []).append(row.node)
    for problem in sorted(by_problem, key=lambda each: -len(by_problem[each]))[:_MOST_PROBLEMS]:
        nodes = by_problem[problem]
        yield text(f"{count(len(nodes), 'node')} ({report.named(nodes)}): {problem}", BAD)
    if len(by_problem) > _MOST_PROBLEMS:
        others = count(len(by_problem) - _MOST_PROBLEMS, "other problem")
        yield text(f"{others}: see the rows", BAD)
    for each in status.differences[:_MOST_DIFFERENCES]:
        verb = "has" if len(each.nodes) == 1 else "have"
        yield text(
            f"{each.fact}: {count(len(each.nodes), 'node')} {verb} {each.value} "
            f"({report.named(each.nodes)}), most have {each.most}",
            _NOTICE,
        )
    if len(status.differences) > _MOST_DIFFERENCES:
        others = count(len(status.differences) - _MOST_DIFFERENCES, "other difference")
        yield text(f"{others}: see the rows", _NOTICE)


def _row(row: NodeStatus, unusual: set[tuple[str, str]]) -> tuple[str | Text, ...]:
    if not row.answered:
        return (row.node, "", "", text(row.problem, BAD), *("",) * 6)
    compared = {
        fact: text(value, _NOTICE if (fact, value) in unusual else "")
        for fact, value in ((fact, value_of(row)) for fact, value_of in _COMPARED.items())
    }
    invalid = compared["invalid objects"]
    fill = f"{row.fullest_table} {row.fill:.0%}" if row.fill else ""
    return (
        row.node,
        compared["version"],
        compared["mode"],
        text(row.problem or row.health, BAD if row.problem else GOOD),
        text(duration(row.lag), BAD if row.lag > LAG_LIMIT else ""),
        f"{row.pending:,}",
        compared["services"],
        invalid if not row.invalid_objects else text(invalid.plain, BAD),
        _drift(row),
        text(fill, BAD if row.fill >= USAGE_LIMIT else ""),
    )


def _drift(row: NodeStatus) -> Text:
    if not row.repairs:
        return text("none", DIM)
    by = f" ({row.repaired_after})" if row.repaired_after else ""
    return text(f"{count(row.repairs, 'repair')}{by}", _NOTICE)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output(parser)
    add_options(parser)


def _run(namespace: argparse.Namespace, _: Sequence[str]) -> int:
    client, chosen = connect(namespace), options(namespace)
    agents = find_agents(client, chosen)
    decode = decoder(AgentStatus)
    rows = {
        answer.node: read(answer, _QUESTION, decode)
        for answer in ask_all(client, agents, _QUESTION, chosen)
    }
    status = cluster_status([node_status(agent, rows[agent.node]) for agent in agents])
    report.show(status, lambda: show(status), namespace)
    return 0 if status.healthy == len(agents) else 1


COMMAND = Command(
    _add_arguments,
    _run,
    ("0 all agents are healthy", "1 an agent is not, or does not respond"),
)
