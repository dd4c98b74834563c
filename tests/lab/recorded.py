"""Answers of a kube-apiserver v1.36.2 in protobuf, most with the same answer in JSON."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, NamedTuple

_FILE = Path(__file__).parent / "recordings" / "kube-apiserver-v1.36.2-protobuf.jsonl"


class Recorded(NamedTuple):
    """One answer; `twin` is the same in JSON, and `path` has the query.

    The twin of a watch was recorded a moment earlier or later, so that its last bookmark may differ
    or be absent.
    """

    name: str
    path: str
    status: int
    content_type: str
    body: bytes
    twin: bytes

    @property
    def is_watch(self) -> bool:
        return "stream=watch" in self.content_type

    def events(self) -> list[Any]:
        """The events of the twin."""
        return [json.loads(line) for line in self.twin.splitlines()]


def _recorded(line: str) -> Recorded:
    found = json.loads(line)
    return Recorded(
        found["name"],
        found["request"]["path"],
        found["status"],
        found["content_type"],
        base64.b64decode(found["body_base64"]),
        found.get("json_twin", "").encode(),
    )


TWINS = [each for each in map(_recorded, _FILE.read_text().splitlines()) if each.twin]


def recorded(name: str) -> Recorded:
    """Return one answer by its name."""
    return next(each for each in TWINS if each.name == name)
