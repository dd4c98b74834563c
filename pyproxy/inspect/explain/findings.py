"""Findings about single packets, merged into one step."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pyproxy.hostnet.packet import PacketPath
from pyproxy.inspect.explain.step import Result, Step
from pyproxy.inspect.humanize import listed
from pyproxy.model.address import backend_text

_ORDER = (Result.FAILED, Result.UNDECIDED, Result.NOTE)
_MAX_DETAILS = 20


class Finding(msgspec.Struct, frozen=True):
    """A fault, a doubt or a note about the packets to an endpoint.

    `{}` in `message` stands for the endpoints that have the same finding.
    """

    result: Result
    message: str
    fix: str = ""
    endpoint: str = ""


def fault(path: PacketPath | None, message: str, fix: str) -> Finding:
    """Return a fault on a path; without one, of all packets."""
    return Finding(Result.FAILED, message, fix, _endpoint(path))


def doubt(path: PacketPath | None, message: str) -> Finding:
    """Return an undecided question on a path."""
    return Finding(Result.UNDECIDED, message, "", _endpoint(path))


def note(message: str) -> Finding:
    """Return a note."""
    return Finding(Result.NOTE, message)


def merged(name: str, findings: Iterable[Finding], passed: str) -> Step:
    """Return the step with these findings, the worst first; `passed` is its message without any."""
    groups: dict[tuple[Result, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.result, finding.message), []).append(finding)
    ranked = sorted(groups.values(), key=lambda group: _ORDER.index(group[0].result))
    if not ranked:
        return Step(name, Result.OK, passed)
    texts = [_text(group) for group in ranked]
    first = ranked[0][0]
    message = texts[0] if first.result is not Result.NOTE else f"{passed}; {texts[0]}"
    return Step(name, first.result, message, first.fix, tuple(texts[1 : _MAX_DETAILS + 1]))


def _text(group: list[Finding]) -> str:
    endpoints = dict.fromkeys(each.endpoint for each in group if each.endpoint)
    return group[0].message.replace("{}", listed(list(endpoints), 3))


def _endpoint(path: PacketPath | None) -> str:
    return backend_text(path.leaving.target) if path else ""
