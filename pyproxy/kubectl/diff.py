"""`kubectl pyproxy diff`: compare desired state and kernel state on all nodes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import msgspec

from pyproxy.commands.arguments import add_output
from pyproxy.commands.output import BAD, DIM, GOOD, Part, text
from pyproxy.errors import one_line
from pyproxy.inspect.humanize import count
from pyproxy.kubectl import report
from pyproxy.kubectl.agents import find_agents
from pyproxy.kubectl.ask import LARGE, Question, decoder, read
from pyproxy.kubectl.command import Command
from pyproxy.kubectl.fan_out import ask_all
from pyproxy.kubectl.options import add_options, connect, options

_QUESTION = Question(("diff",), LARGE, statuses=(0, 1))
_PARALLEL = 16
"""Large answers that are held at the same time at most."""

_TIMEOUT = 30.0
_MOST_LINES = 20
_LONGEST_TEXT = 300
_SAME = "the kernel state is the desired state"


class _Diff(msgspec.Struct, frozen=True):
    same: bool = False
    counts: dict[str, int] = {}
    lines: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()


class Group(msgspec.Struct, frozen=True):
    """Nodes with the same difference.

    `problem` is the reason of nodes without an answer. `lines` are the first ones of those that the
    next full sync would write, of which `total` has the number.
    """

    nodes: tuple[str, ...]
    same: bool
    problem: str = ""
    total: int = 0
    lines: tuple[str, ...] = ()


class ClusterDiff(msgspec.Struct, frozen=True):
    """The groups of all nodes, the largest first; `same` is true if no node differs."""

    same: bool
    groups: tuple[Group, ...]


def group(answers: Sequence[tuple[str, Group]]) -> ClusterDiff:
    """Group the answers of nodes, each a group without nodes."""
    nodes: dict[Group, list[str]] = {}
    for node, answer in answers:
        nodes.setdefault(answer, []).append(node)
    groups = [
        msgspec.structs.replace(answer, nodes=tuple(members)) for answer, members in nodes.items()
    ]
    groups.sort(key=lambda each: -len(each.nodes))
    return ClusterDiff(all(each.same for each in groups), tuple(groups))


def _reduced(found: _Diff | str) -> Group:
    """Return an answer as a group without nodes: what is printed, and no more of it."""
    if isinstance(found, str):
        return Group((), same=False, problem=found)
    lines = (*found.rules, *found.lines)
    shown = tuple(one_line(line, _LONGEST_TEXT) for line in lines[:_MOST_LINES])
    return Group((), same=found.same, total=len(lines), lines=shown)


def show(found: ClusterDiff) -> Iterator[Part]:
    """Yield a line for nodes in step, and the lines of each other group."""
    total = sum(len(each.nodes) for each in found.groups)
    for each in found.groups:
        nodes = report.nodes_text(each.nodes, total)
        if each.problem:
            yield text(f"{nodes}: no answer: {each.problem}", BAD)
            continue
        if each.same:
            yield text(f"{nodes}: {_SAME}", GOOD)
            continue
        yield text(f"{nodes}: {count(each.total, 'difference')}", BAD)
        for line in each.lines:
            yield text(f"  {line}", BAD)
        if each.total > len(each.lines):
            yield text(f"  and {each.total - len(each.lines):,} more", DIM)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output(parser)
    add_options(parser, timeout=_TIMEOUT)


def _run(namespace: argparse.Namespace, _: Sequence[str]) -> int:
    client, chosen = connect(namespace), options(namespace, _PARALLEL)
    agents, decode = find_agents(client, chosen), decoder(_Diff)
    answers = {
        answer.node: _reduced(read(answer, _QUESTION, decode))
        for answer in ask_all(client, agents, _QUESTION, chosen)
    }
    grouped = group([(agent.node, answers[agent.node]) for agent in agents])
    report.show(grouped, lambda: show(grouped), namespace)
    return 0 if grouped.same else 1


COMMAND = Command(
    _add_arguments, _run, ("0 no difference", "1 differences, or a node did not answer")
)
