"""Running the load generator beside a test."""

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
    """What came of all connections, known once the load has ended."""

    answered: int = 0
    late: int = 0
    failed: Mapping[str, int] = {}


@contextmanager
def load(namespace: Namespace, rate: int, to: Sequence[str]) -> Iterator[LoadResult]:
    """Open `rate` connections a second to each in turn of some `ADDRESS:PORT`, during the block."""
    places = [word for each in to for word in map(str, parse_destination(each).socket_address)]
    process = namespace.start(
        [sys.executable, "-I", "-S", str(PROGRAM), str(rate), *places],
        stdin=subprocess.PIPE,
        output=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    came = LoadResult()
    try:
        assert process.stdout.readline() == b"ready\n"
        yield came
        process.stdin.close()
        last = msgspec.json.decode(process.stdout.read(), type=LoadResult)
        came.answered, came.late, came.failed = last.answered, last.late, last.failed
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
