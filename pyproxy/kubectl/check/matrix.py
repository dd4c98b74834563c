"""The results of a check as a matrix: a row for each test and source, a column for each node."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from pyproxy.commands.output import BAD, DIM, GOOD, Part, Text, table, text
from pyproxy.inspect.humanize import count, listed
from pyproxy.kubectl.check import plan
from pyproxy.kubectl.check.plan import ConnectionTest

OK, FAILED, NONE = "ok", "failed", "none"
"""The results of a cell; NONE means that there was nothing to test."""

_MARKS = {OK: text("✓", GOOD), FAILED: text("✗", BAD), NONE: text("-", DIM)}
_MOST_SHOWN = 30
_COUNTS = re.compile(r"\b\d+ of \d+ ")
_NAMED = 3

ORDER = (
    plan.AGENT, plan.PODS, plan.POD_ADDRESS, plan.CLUSTER, plan.UDP, plan.INTERNAL, plan.AFFINITY,
    plan.EMPTY, plan.HOST, plan.OWN_PORT, plan.OTHER_PORT, plan.OWN_LOCAL, plan.OTHER_LOCAL,
    plan.HAIRPIN, plan.ROLLOUT,
)  # fmt: skip
"""The tests in the order of the matrix."""

SKIPPED = {
    plan.HEADLESS: "its names are answered by DNS, and no proxy has a part in it",
}
"""Tests that are left out, with the reason."""


class Finding(msgspec.Struct, frozen=True):
    """A test that failed on a node, as often as it has destinations."""

    test: str
    source: str
    node: str
    destinations: tuple[str, ...]
    problem: str
    next: str = ""


class Row(msgspec.Struct, frozen=True):
    """The results of one test from one source, by node."""

    test: str
    source: str
    results: Mapping[str, str]


class CheckReport(msgspec.Struct, frozen=True, rename="camel"):
    """All results. `ok` is true if nothing failed; `notes` are about the check itself.

    `suspects` are sentences about the nodes that all failures have in common.
    """

    ok: bool
    namespace: str
    nodes: tuple[str, ...]
    rows: tuple[Row, ...]
    failures: tuple[Finding, ...]
    suspects: tuple[str, ...]
    skipped: Mapping[str, str]
    notes: tuple[str, ...]


class Outcome(msgspec.Struct, frozen=True):
    """The result of one test without a destination, such as that of a node's agent."""

    test: str
    node: str
    problem: str
    next: str = ""


def report(
    namespace: str,
    nodes: Sequence[str],
    results: Mapping[ConnectionTest, str],
    others: Iterable[Outcome],
    notes: Iterable[str],
    kept: bool,
) -> CheckReport:
    """Put all results together."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    failures = []
    for other in others:
        result = FAILED if other.problem else OK
        row = cells.setdefault((other.test, ""), {})
        if row.get(other.node) != FAILED:
            row[other.node] = result
        if other.problem:
            failures.append(Finding(other.test, "", other.node, (), other.problem, other.next))
    for test, problem in results.items():
        row = cells.setdefault((test.name, test.source), {})
        if row.get(test.node) != FAILED:
            row[test.node] = FAILED if problem else OK
    failures += _findings(results, namespace if kept else "")
    failures.sort(key=lambda each: (ORDER.index(each.test), each.source))
    rows = [
        Row(test, source, {node: cells[test, source].get(node, NONE) for node in nodes})
        for test, source in sorted(cells, key=lambda key: (ORDER.index(key[0]), key[1] != "pod"))
    ]
    return CheckReport(
        ok=not failures,
        namespace=namespace,
        nodes=tuple(nodes),
        rows=tuple(rows),
        failures=tuple(failures),
        suspects=tuple(_suspects(results)),
        skipped=SKIPPED,
        notes=tuple(notes),
    )


def _suspects(results: Mapping[ConnectionTest, str]) -> Iterator[str]:
    """Yield a sentence if one node has a part in each connection without a Service that failed."""
    pairs = [
        {test.node, *test.target.names}
        for test, problem in results.items()
        if problem and test.name == plan.POD_ADDRESS
    ]
    common = set.intersection(*pairs) if pairs else set()
    if len(common) == 1:
        (node,) = common
        yield f"all failed connections without a Service are from or to pods of {node}: begin there"


def _findings(results: Mapping[ConnectionTest, str], kept: str) -> Iterator[Finding]:
    """Yield equal problems of one test and node as one finding."""
    groups: dict[tuple[str, str, str, str], list[ConnectionTest]] = {}
    for test, problem in results.items():
        if problem:
            groups.setdefault((test.name, test.source, test.node, problem), []).append(test)
    for (name, source, node, problem), tests in groups.items():
        destinations = tuple(each.destination for each in tests)
        yield Finding(name, source, node, destinations, problem, _next(tests[0], kept))


def _next(test: ConnectionTest, kept: str) -> str:
    # The pods are the endpoints of this Service, and explain checks the path to endpoints as well.
    service = test.service or "cluster"
    command = f"kubectl pyproxy explain {kept or 'NAMESPACE'}/{service} --node {test.node}"
    return command if kept else f"check again with --keep, then {command}"


def show(found: CheckReport) -> Iterator[Part]:
    """Yield the matrix, the failures with what to do next, and the sum."""
    yield table(
        ("TEST", "FROM", *found.nodes),
        ((row.test, row.source, *_marks(row, found.nodes)) for row in found.rows),
    )
    yield text("")
    for name, reason in found.skipped.items():
        yield text(f"not tested: {name}: {reason}", DIM)
    for note in found.notes:
        yield text(note, DIM)
    for line in found.suspects:
        yield text(line, BAD)
    groups = _groups(found.failures)
    for group in groups[:_MOST_SHOWN]:
        yield from _lines(group)
    if (more := len(groups) - _MOST_SHOWN) > 0:
        yield text(f"and {count(more, 'other failure')}: see -o json", BAD)
    yield _sum(found)


def _groups(failures: Sequence[Finding]) -> list[list[Finding]]:
    """Group the tests that failed on a node in the same way."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for each in failures:
        groups.setdefault((each.node, each.source, _kind(each.problem)), []).append(each)
    return list(groups.values())


def _kind(problem: str) -> str:
    """Return a problem without the numbers of connections, which are chance."""
    return _COUNTS.sub("", problem)


def _lines(group: Sequence[Finding]) -> Iterator[Text]:
    first = group[0]
    source = f" from {first.source}" if first.source else ""
    to = f" to {listed(first.destinations, _NAMED)}" if first.destinations else ""
    yield text(f"{first.node}: {first.test}{source}{to}: {first.problem}", BAD)
    if others := list(dict.fromkeys(each.test for each in group if each.test != first.test)):
        yield text(f"    the same in {count(len(others), 'other test')}: {'; '.join(others)}", BAD)
    if first.next:
        yield text(f"    next: {first.next}")


def _sum(found: CheckReport) -> Text:
    total = sum(result != NONE for row in found.rows for result in row.results.values())
    failed = sum(result == FAILED for row in found.rows for result in row.results.values())
    on = count(len(found.nodes), "node")
    if not failed:
        return text(f"all {count(total, 'result')} on {on} are as expected", GOOD)
    names = {each.node: None for each in found.failures}
    return text(f"{failed:,} of {count(total, 'result')} failed: {listed(list(names), 10)}", BAD)


def _marks(row: Row, nodes: Sequence[str]) -> Iterator[Text]:
    for node in nodes:
        yield _MARKS[row.results[node]]
