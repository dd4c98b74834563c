"""Run the load generator during a test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from pyproxy_lab.namespace import Namespace

from pyproxy.model.destination import parse_destination

PROGRAM = Path(__file__).with_name("load_generator.py")


class LoadResult(msgspec.Struct):
    """The results of all connections, set when the load ends."""

    answered: int = 0
    retransmitted: int = 0
    failed: Mapping[str, int] = {}


@contextmanager
def load(namespace: Namespace, rate: int, to: Sequence[str]) -> Iterator[LoadResult]:
    """Open `rate` connections a second during the block, to each `ADDRESS:PORT` of `to` in turn."""
    places = [word for each in to for word in map(str, parse_destination(each).socket_address)]
    process = namespace.start(
        [sys.executable, "-I", "-S", str(PROGRAM), str(rate), *places],
        stdin=subprocess.PIPE,
        output=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    result = LoadResult()
    try:
        assert process.stdout.readline() == b"ready\n"
        yield result
        process.stdin.close()
        last = msgspec.json.decode(process.stdout.read(), type=LoadResult)
        result.answered, result.failed = last.answered, last.failed
        result.retransmitted = last.retransmitted
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
