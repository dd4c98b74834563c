"""Write the tables of docs/reference that the code defines, so that they cannot differ from it.

    python -m tools.reference

A page there has hand-written text, and tables between `<!-- generated: NAME -->` and
`<!-- end of generated text -->`. Only these are written.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from prometheus_client import Metric

from pyproxy import cli, errors
from pyproxy.commands import registry
from pyproxy.commands.command import COMMON_STATUSES
from pyproxy.config.command_line import Parser
from pyproxy.config.flag import Flag
from pyproxy.config.given import FLAGS
from pyproxy.config.modes import ProxyMode
from pyproxy.config.no_effect import FIELDS, NO_EFFECT
from pyproxy.config.schema import API_VERSION, KIND, ZERO
from pyproxy.errors import ProblemReason
from pyproxy.kubectl import command as kubectl
from tests.used_metrics import families

FOLDER = Path("docs/reference")

_BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end of generated text -->)", re.S)
_WITHOUT_FLAG = {
    "apiVersion": f"must be {API_VERSION}",
    "kind": f"must be {KIND}",
    "clientConnection.acceptContentTypes": (
        "media types in order of preference, which override --kube-api-content-type"
    ),
}
"""The effects of fields with an effect and no flag."""


def flags() -> Iterator[str]:
    """Yield the table of the flags with an effect."""
    idle = {entry.flag.name for entry in NO_EFFECT}
    rows = (
        (code(each.name), code(each.default), _effect(each))
        for each in FLAGS
        if each.name not in idle
    )
    return table(("flag", "default", "effect"), rows)


def flags_without_effect() -> Iterator[str]:
    """Yield the table of kube-proxy's flags without effect, with the reason."""
    by_reason: dict[str, list[str]] = {}
    for entry in NO_EFFECT:
        by_reason.setdefault(entry.reason, []).append(entry.flag.name)
    rows = ((code(*sorted(names)), reason) for reason, names in sorted(by_reason.items()))
    return table(("flags", "reason"), rows)


def fields() -> Iterator[str]:
    """Yield the table of the fields of KubeProxyConfiguration."""
    by_field: dict[str, list[Flag[object]]] = {}
    for each in FLAGS:
        for path in each.fields:
            by_field.setdefault(path, []).append(each)
    reasons = {entry.path: entry.reason for entry in FIELDS}
    rows = []
    for path, zero in sorted(ZERO.items(), key=lambda item: item[0].lower()):
        named = by_field.get(path, [])
        # The flag of the field's own mode, where another one reads the field too.
        own = [one for one in named if one.fields == (path,)]
        flag = next(iter(own or named), None)
        default = flag.default if flag else ""
        if path in reasons:
            effect = f"no effect: {reasons[path]}"
        else:
            effect = f"{code(flag.name)}: {_effect(flag)}" if flag else _WITHOUT_FLAG[path]
        rows.append((code(path), _type(zero, default), code(default), effect))
    return table(("field", "type", "default", "flag with the same meaning, and effect"), rows)


def commands() -> Iterator[str]:
    """Yield the inspection commands, and the table of their arguments."""
    parsers = {}
    for name, entry in registry.COMMANDS.items():
        parsers[name] = Parser(f"pyproxy {name}")
        entry.load().declare(parsers[name], entry.help)
    yield from _purposes("pyproxy", registry.COMMANDS)
    yield from _arguments(parsers)


def kubectl_commands() -> Iterator[str]:
    """Yield the commands of the kubectl plugin, and the table of their arguments."""
    parsers = {}
    for name, entry in kubectl.COMMANDS.items():
        parsers[name] = Parser(f"kubectl pyproxy {name}")
        entry.load().add_arguments(parsers[name])
    yield from _purposes("kubectl pyproxy", kubectl.COMMANDS)
    yield from _arguments(parsers)


def statuses() -> Iterator[str]:
    """Yield the table of the results of all commands."""
    programs: list[tuple[str, Sequence[str]]] = [
        *((f"pyproxy {name}", lines) for name, lines in cli.STATUSES.items()),
        *((f"pyproxy {name}", each.load().statuses) for name, each in registry.COMMANDS.items()),
        *(
            (f"kubectl pyproxy {name}", each.load().statuses)
            for name, each in kubectl.COMMANDS.items()
        ),
    ]
    rows = []
    for name, lines in programs:
        by_number = dict(map(_status, lines))
        # `kubectl pyproxy trace` has a line without a number.
        zero = by_number.get("0") or "; ".join(lines)
        rows.append((code(name), zero, by_number.get("1", "")))
    return table(("command", "0", "1"), rows)


def shared_statuses() -> Iterator[str]:
    """Yield the table of the statuses that several commands share."""
    rows = [
        (code(f"pyproxy {name}"), *_status(line))
        for name, lines in cli.STATUSES.items()
        for line in lines
        if line[0] not in "01"
    ]
    rows += (("inspection commands of `pyproxy`", *_status(line)) for line in COMMON_STATUSES)
    rows += (("`kubectl pyproxy`", *_status(line)) for line in kubectl.STATUSES)
    return table(("commands", "status", "meaning"), rows)


def metrics_of_kube_proxy() -> Iterator[str]:
    """Yield the table of the metrics under kube-proxy's names."""
    return _metrics(lambda name: not name.startswith("pyproxy_"))


def metrics_of_pyproxy() -> Iterator[str]:
    """Yield the table of the metrics that kube-proxy lacks."""
    return _metrics(lambda name: name.startswith("pyproxy_"))


def events() -> Iterator[str]:
    """Yield the table of the reasons of Warning Events."""
    meanings = member_docstrings(errors, ProblemReason.__name__)
    rows = (
        (
            code(reason.value),
            "one for each node" if reason.node_specific else "one for all nodes",
            meanings[reason.name],
        )
        for reason in ProblemReason
    )
    return table(("reason", "Events", "meaning"), rows)


GENERATORS: Mapping[str, Callable[[], Iterator[str]]] = {
    "flags": flags,
    "flags-without-effect": flags_without_effect,
    "fields": fields,
    "commands": commands,
    "kubectl-commands": kubectl_commands,
    "exit-statuses": statuses,
    "shared-exit-statuses": shared_statuses,
    "kube-proxy-metrics": metrics_of_kube_proxy,
    "pyproxy-metrics": metrics_of_pyproxy,
    "events": events,
}
"""The text of each block, by its name."""


def generate(text: str) -> str:
    """Return a page with its generated blocks written again. Raises KeyError for an unknown one."""

    def block(match: re.Match[str]) -> str:
        lines = "\n".join(GENERATORS[match[2]]()).rstrip()
        return f"{match[1]}\n{lines}\n\n{match[3]}"

    return _BLOCK.sub(block, text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        cells = (cell.replace("|", r"\|") for cell in row)
        yield f"| {' | '.join(cells)} |"


def code(*names: str) -> str:
    """Return names in code style, separated by commas; an empty name is left out."""
    return ", ".join(f"`{name}`" for name in names if name)


def member_docstrings(module: ModuleType, name: str) -> dict[str, str]:
    """Return the docstring below each member of a class, by the member's name."""
    (body,) = (
        node.body
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.ClassDef) and node.name == name
    )
    return {
        member.targets[0].id: " ".join(text.value.value.split())
        for member, text in pairwise(body)
        if isinstance(member, ast.Assign)
        and isinstance(member.targets[0], ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _effect(flag: Flag[object]) -> str:
    """Return the help of a flag, with its modes if these are not all and the help lacks them."""
    modes = [mode.value for mode in ProxyMode if mode in flag.modes]
    if len(modes) == len(ProxyMode) or " mode" in flag.help:
        return flag.help
    return f"{flag.help} (in {' and '.join(modes)} mode)"


def _type(zero: object, default: str) -> str:
    if isinstance(zero, tuple):
        return "list"
    if isinstance(zero, dict):
        return "map"
    if isinstance(zero, bool) or default in {"true", "false"}:
        return "boolean"
    if zero == "0s" or re.fullmatch(r"[0-9a-z]*\ds", default):
        return "duration"
    if isinstance(zero, int | float) or zero is None:
        return "number" if isinstance(zero, float) else "integer" if default else "boolean"
    return "quantity" if zero == "0" else "string"


def _status(line: str) -> tuple[str, str]:
    number, _, meaning = line.partition(" ")
    return number, meaning


def _purposes(program: str, entries: Mapping[str, registry.Entry[Any]]) -> Iterator[str]:
    rows = ((code(f"{program} {name}"), entry.help) for name, entry in entries.items())
    yield from table(("command", "purpose"), rows)
    yield ""


def _arguments(parsers: Mapping[str, argparse.ArgumentParser]) -> Iterator[str]:
    """Yield the table of all arguments that --help shows, each with the commands that have it."""
    users: dict[tuple[str, str], list[str]] = {}
    for name, parser in parsers.items():
        for action in parser._actions:  # argparse has no public list of them
            if action.dest != "help" and action.help != argparse.SUPPRESS:
                users.setdefault((code(_usage(action)), _help(action)), []).append(name)
    rows = ((usage, ", ".join(names), about) for (usage, about), names in users.items())
    yield from table(("argument", "commands", "meaning"), rows)


def _usage(action: argparse.Action) -> str:
    value = action.metavar or action.dest.upper()
    if action.choices and not action.metavar:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return str(value)
    if action.nargs == 0:
        return ", ".join(action.option_strings)
    return f"{', '.join(action.option_strings)} {f'[{value}]' if action.nargs == '?' else value}"


def _help(action: argparse.Action) -> str:
    values: dict[str, Any] = vars(action) | {"prog": "pyproxy"}
    return (action.help or "") % values


def _metrics(chosen: Callable[[str], bool]) -> Iterator[str]:
    found = {_exposed_name(each): each for each in families()}
    rows = (
        (code(name), each.type, code(*_labels(each)), each.documentation.rstrip("."))
        for name, each in sorted(found.items())
        if chosen(name)
    )
    return table(("metric", "type", "labels", "meaning"), rows)


def _exposed_name(family: Metric) -> str:
    return family.name + ("_total" if family.type == "counter" else "")


def _labels(family: Metric) -> Iterable[str]:
    # A family without samples knows the names of its labels, and one with samples may not.
    declared: Sequence[str] = getattr(family, "_labelnames", ())
    used = (name for sample in family.samples for name in sample.labels if name != "le")
    return dict.fromkeys((*declared, *used))


def main() -> None:
    """Write the generated blocks of all pages."""
    for path in sorted(FOLDER.glob("*.md")):
        before = path.read_text()
        after = generate(before)
        if after != before:
            path.write_text(after)


if __name__ == "__main__":
    main()
