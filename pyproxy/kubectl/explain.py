"""`kubectl pyproxy explain`: ask all nodes why a Service does not respond, and group answers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import msgspec

from pyproxy.commands import explanation
from pyproxy.commands.arguments import add_output
from pyproxy.commands.output import BAD, GOOD, Part, text
from pyproxy.errors import SourceError, one_line
from pyproxy.inspect.explain import Explanation, Result, Step
from pyproxy.inspect.target import parse
from pyproxy.kubectl import report
from pyproxy.kubectl.agents import find_agents
from pyproxy.kubectl.ask import Question, decoder, read
from pyproxy.kubectl.command import Command
from pyproxy.kubectl.fan_out import ask_all
from pyproxy.kubectl.options import add_options, connect, options
from pyproxy.kubectl.selector import SelectorCheck

_LONGEST_TEXT = 1000
_MOST_STEPS = 100
_MOST_DETAILS = 100


class _Step(msgspec.Struct, frozen=True):
    name: str = ""
    result: str = ""
    message: str = ""
    fix: str = ""
    details: tuple[str, ...] = ()
    final: bool = False


class AgentExplanation(msgspec.Struct, frozen=True):
    """The fields of `pyproxy explain -o json`; an agent of another version may lack some."""

    target: str = ""
    ok: bool = False
    verdict: str = ""
    fix: str = ""
    steps: tuple[_Step, ...] = ()
    checked: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()

    def explanation(self) -> Explanation:
        """Return the explanation, bounded, with results of unknown kinds as undecided ones."""
        return Explanation(
            _short(self.target),
            self.ok,
            _short(self.verdict),
            _short(self.fix),
            tuple(
                Step(
                    _short(step.name),
                    _RESULTS.get(step.result, Result.UNDECIDED),
                    _short(step.message),
                    _short(step.fix),
                    tuple(map(_short, step.details[:_MOST_DETAILS])),
                    step.final,
                )
                for step in self.steps[:_MOST_STEPS]
            ),
            tuple(map(_short, self.checked[:_MOST_STEPS])),
            tuple(map(_short, self.not_checked[:_MOST_STEPS])),
        )


_RESULTS = {result.value: result for result in Result}


class Group(msgspec.Struct, frozen=True, rename="camel"):
    """Nodes with the same verdict, and the explanation of the first of them.

    `explanation` is None for nodes that did not answer, with the reason in `verdict`.
    """

    nodes: tuple[str, ...]
    ok: bool
    verdict: str
    fix: str = ""
    explanation: Explanation | None = None


class ClusterExplanation(msgspec.Struct, frozen=True):
    """The groups of all nodes, the largest first; `ok` is true if no node has found a fault."""

    target: str
    ok: bool
    groups: tuple[Group, ...]


def group(target: str, answers: Sequence[tuple[str, Explanation | str]]) -> ClusterExplanation:
    """Group the answers of nodes, whose order is kept, by their verdicts."""
    by_verdict: dict[tuple[bool, str, str], list[tuple[str, Explanation | str]]] = {}
    for node, answer in answers:
        by_verdict.setdefault(_verdict(node, answer), []).append((node, answer))
    groups = [_group(verdict, members) for verdict, members in by_verdict.items()]
    groups.sort(key=lambda each: -len(each.nodes))
    return ClusterExplanation(target, all(each.ok for each in groups), tuple(groups))


def _group(key: tuple[bool, str, str], members: Sequence[tuple[str, Explanation | str]]) -> Group:
    (ok, verdict, fix), first = key, members[0][1]
    nodes = tuple(node for node, _ in members)
    if isinstance(first, str):
        return Group(nodes, ok, verdict, fix)
    if len(members) > 1 or ok:
        return Group(nodes, ok, verdict, fix, first)
    # Alone, an answer keeps the name of its node and its numbers.
    return Group(nodes, ok, first.verdict, first.fix, first)


def _verdict(node: str, answer: Explanation | str) -> tuple[bool, str, str]:
    if isinstance(answer, str):
        return False, f"no answer: {report.without_node(answer, node)}", ""
    if answer.ok:
        return True, _without_fault(answer), ""
    plain = report.without_node
    return False, plain(answer.verdict, node), plain(answer.fix, node)


def _without_fault(answer: Explanation) -> str:
    """Return the verdict of nodes without a fault: the names of steps, without their reasons."""
    text = "no fault found"
    for result, words in ((Result.SKIPPED, "not checked"), (Result.UNDECIDED, "undecided")):
        names = [step.name for step in answer.steps if step.result is result]
        text += f"; {words}: {', '.join(names)}" if names else ""
    return text


def show(found: ClusterExplanation, *, verbose: bool) -> Iterator[Part]:
    """Yield a line for each group, with its steps if `verbose` or if only one node was asked."""
    total = sum(len(each.nodes) for each in found.groups)
    for each in found.groups:
        if each.explanation is not None and (verbose or total == 1):
            if total > 1:
                yield text(f"{report.nodes_text(each.nodes, total)}, as {each.nodes[0]} answers:")
            yield from explanation.show(each.explanation)
            yield text("")
            continue
        nodes = report.nodes_text(each.nodes, total)
        yield text(f"{nodes}: {each.verdict}", GOOD if each.ok else BAD)
        if each.fix:
            yield text(f"    fix: {each.fix}")
    if not verbose and total > 1:
        yield text("")
        yield text("--verbose shows the steps of each group, --node NODE those of one node")


def _short(value: str) -> str:
    return one_line(value, _LONGEST_TEXT)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        metavar="NAMESPACE/NAME|ADDRESS:PORT[/udp|sctp]",
        help="a Service, or the destination of a client",
    )
    parser.add_argument("--verbose", action="store_true", help="show the steps of each group")
    add_output(parser)
    add_options(parser)


def _run(namespace: argparse.Namespace, rest: Sequence[str]) -> int:
    target = parse(namespace.target)
    client, chosen = connect(namespace), options(namespace)
    question = Question(("explain", namespace.target, *rest), statuses=(0, 1))
    agents, decode = find_agents(client, chosen), decoder(AgentExplanation)
    selector = SelectorCheck(client, target)
    answers: dict[str, Explanation | str] = {}
    for answer in ask_all(client, agents, question, chosen):
        found = read(answer, question, decode)
        answers[answer.node] = found if isinstance(found, str) else found.explanation()
    for node, found_there in answers.items():
        if isinstance(found_there, Explanation):
            try:
                answers[node] = selector.fill_in(found_there)
            except SourceError:
                break  # the step stays as the agent has it
    grouped = group(namespace.target, [(agent.node, answers[agent.node]) for agent in agents])
    report.show(grouped, lambda: show(grouped, verbose=namespace.verbose), namespace)
    return 0 if grouped.ok else 1


COMMAND = Command(
    _add_arguments,
    _run,
    ("0 no step failed on any node", "1 a step failed, or a node did not answer"),
    forwards=True,
)
