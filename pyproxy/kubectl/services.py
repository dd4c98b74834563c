"""`kubectl pyproxy services`: Service ports as all nodes serve them, a row for each difference."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from hashlib import sha256

import msgspec

from pyproxy.commands.arguments import add_output
from pyproxy.commands.output import BAD, GOOD, Part, Text, table, text
from pyproxy.errors import UsageError, one_line
from pyproxy.inspect.humanize import count
from pyproxy.inspect.services import object_name
from pyproxy.kubectl import report
from pyproxy.kubectl.agents import find_agents, natural
from pyproxy.kubectl.ask import LARGE, Answer, Question, decoder, read
from pyproxy.kubectl.command import Command
from pyproxy.kubectl.fan_out import ask_all
from pyproxy.kubectl.options import add_options, connect, options

_PARALLEL = 16
"""Large answers that are held at the same time at most."""

_TIMEOUT = 30.0
_LONGEST_TEXT = 300
_MOST_NODES = 50
"""Nodes that are asked for all Services without a flag: 10,000 Services have 15 MB for each."""

_NAMED_ADDRESSES = 8
_MOST_ROWS = 200_000
"""Rows that are held: more than the largest cluster has, whatever a node answers."""


class _Frontend(msgspec.Struct, frozen=True):
    address: str = ""
    port: int = 0


class _Endpoint(msgspec.Struct, frozen=True, rename="camel"):
    used_by: str = ""
    reason: str = ""


class _Port(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    family: str = ""
    protocol: str = ""
    port: int = 0
    node_port: int = 0
    frontends: tuple[_Frontend, ...] = ()
    endpoints: tuple[_Endpoint, ...] = ()


class _Service(msgspec.Struct, frozen=True, rename="camel"):
    namespace: str = ""
    name: str = ""
    internal_policy: str = ""
    external_policy: str = ""
    ports: tuple[_Port, ...] = ()


class _Services(msgspec.Struct, frozen=True):
    services: tuple[_Service, ...] = ()


class PortRow(msgspec.Struct, frozen=True, rename="camel", order=True):
    """A port of a Service in one family, as some nodes serve it.

    `used` of `endpoints` are used; `reasons` say why others are not.
    """

    namespace: str
    name: str
    family: str
    port: str
    addresses: tuple[str, ...]
    policy: str
    used: int
    endpoints: int
    reasons: tuple[str, ...]


class PortGroup(msgspec.Struct, frozen=True):
    """The nodes that serve a port in this way."""

    row: PortRow
    nodes: tuple[str, ...]


class ClusterServices(msgspec.Struct, frozen=True):
    """All rows, `asked` the number of nodes, and why nodes gave no answer."""

    asked: int
    ports: tuple[PortGroup, ...]
    failures: dict[str, str]


class Collector:
    """Collects answers to a question; equal answers are decoded once, equal rows held once.

    Most nodes give the same answer, byte by byte, because few facts in it depend on the node.
    """

    def __init__(self, question: Question) -> None:
        self._question = question
        self._decode = decoder(_Services)
        self._nodes_by_answer: dict[bytes, list[str]] = {}
        self._answers_by_row: dict[PortRow, list[bytes]] = {}
        self._failures: dict[str, str] = {}
        self._asked = 0

    def add(self, answer: Answer) -> None:
        """Add the answer of one node."""
        self._asked += 1
        digest = sha256(b"%d %s" % (answer.status, answer.output)).digest()
        if not answer.failure and digest in self._nodes_by_answer:
            self._nodes_by_answer[digest].append(answer.node)
            return
        found = read(answer, self._question, self._decode)
        if isinstance(found, str):
            self._failures[answer.node] = found
            return
        self._nodes_by_answer[digest] = [answer.node]
        for row in {_row(service, port) for service in found.services for port in service.ports}:
            if len(self._answers_by_row) < _MOST_ROWS or row in self._answers_by_row:
                self._answers_by_row.setdefault(row, []).append(digest)

    def result(self) -> ClusterServices:
        """Return all rows, sorted by Service."""
        groups = (
            PortGroup(row, self._nodes(digests))
            for row, digests in sorted(self._answers_by_row.items(), key=lambda item: item[0])
        )
        return ClusterServices(self._asked, tuple(groups), self._failures)

    def _nodes(self, digests: Sequence[bytes]) -> tuple[str, ...]:
        nodes = (node for each in digests for node in self._nodes_by_answer[each])
        return tuple(sorted(nodes, key=natural))


def show(found: ClusterServices) -> Iterator[Part]:
    """Yield a row for each port, and one more for nodes that serve it in another way."""
    total = found.asked - len(found.failures)
    yield table(
        ("NAMESPACE", "NAME", "PORT", "ADDRESSES", "POLICY", "ENDPOINTS", "NODES",
         "UNUSED BECAUSE"),
        (_cells(each.row, each.nodes, total) for each in found.ports),
    )  # fmt: skip
    by_reason: dict[str, list[str]] = {}
    for node, reason in found.failures.items():
        by_reason.setdefault(reason, []).append(node)
    for reason, nodes in by_reason.items():
        yield text(f"{count(len(nodes), 'node')} ({report.named(nodes)}): no answer: {reason}", BAD)


def _row(service: _Service, port: _Port) -> PortRow:
    used = sum(bool(each.used_by) for each in port.endpoints)
    reasons = sorted({each.reason for each in port.endpoints if not each.used_by})
    internal, external = service.internal_policy, service.external_policy
    policy = internal if internal == external else f"internal {internal}, external {external}"
    name = f"{port.name} " if port.name else ""
    node_port = f" (node port {port.node_port})" if port.node_port else ""
    return PortRow(
        _short(service.namespace),
        _short(service.name),
        _short(port.family),
        _short(f"{name}{port.port}/{port.protocol}{node_port}"),
        tuple(_short(_address(each)) for each in port.frontends[:_NAMED_ADDRESSES]),
        _short(policy),
        used,
        len(port.endpoints),
        tuple(map(_short, reasons)),
    )


def _address(frontend: _Frontend) -> str:
    if ":" in frontend.address:
        return f"[{frontend.address}]:{frontend.port}"
    return f"{frontend.address or 'node addresses'}:{frontend.port}"


def _cells(row: PortRow, nodes: Sequence[str], total: int) -> tuple[str | Text, ...]:
    everywhere = len(nodes) == total
    where = f"all {total:,}" if everywhere else report.nodes_text(nodes, total)
    return (
        row.namespace,
        row.name,
        row.port,
        ", ".join(row.addresses) or text("none", BAD),
        row.policy,
        text(f"{row.used}/{row.endpoints}", GOOD if row.used else BAD),
        text(where, "" if everywhere else "yellow"),
        "; ".join(row.reasons),
    )


def _short(value: str) -> str:
    return one_line(value, _LONGEST_TEXT)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", default="", metavar="NAMESPACE[/NAME]",
        help="show one namespace or one Service",
    )  # fmt: skip
    parser.add_argument(
        "-A", "--all-namespaces", action="store_true",
        help=f"show all Services; required for more than {_MOST_NODES} nodes without a namespace",
    )  # fmt: skip
    add_output(parser)
    add_options(parser, timeout=_TIMEOUT)


def _run(namespace: argparse.Namespace, _: Sequence[str]) -> int:
    words: tuple[str, ...] = ("services",)
    if "/" in namespace.name:
        words += (str(object_name(namespace.name)),)
    elif namespace.name:
        words += ("--namespace", namespace.name)
    question = Question(words, LARGE)
    client, chosen = connect(namespace), options(namespace, _PARALLEL)
    agents, collector = find_agents(client, chosen), Collector(question)
    if len(agents) > _MOST_NODES and not (namespace.name or namespace.all_namespaces):
        raise UsageError(
            f"services: all Services of {len(agents):,} nodes may have gigabytes: give a namespace "
            "or a Service, choose nodes with --node, or give -A"
        )
    for answer in ask_all(client, agents, question, chosen):
        collector.add(answer)
    found = collector.result()
    report.show(found, lambda: show(found), namespace)
    return 1 if found.failures else 0


COMMAND = Command(_add_arguments, _run, ("0 success", "1 a node did not answer"))
