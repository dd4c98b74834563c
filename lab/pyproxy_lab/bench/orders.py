"""Orders to a process that runs an API server: a line of JSON each, and a line in reply."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import msgspec

from pyproxy_lab.bench.shape import Size
from pyproxy_lab.namespace import LabError, with_default_signals
from pyproxy_lab.process import pipes

Done = TypeVar("Done", bound=msgspec.Struct)


class OrderedServer(Generic[Done]):
    """The other end of the process's input and output; `done` is the type of its replies."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], done: type[Done]) -> None:
        self.url = url
        self._process = process
        self._orders, self._output = pipes(process)
        self._decoder = msgspec.json.Decoder(done)

    def order(self, order: msgspec.Struct) -> Done:
        """Send an order, and wait until it is done. Raises LabError where the process has ended."""
        self.begin(order)
        return self.finish()

    def begin(self, order: msgspec.Struct) -> None:
        """Send an order, and do not wait; `finish` must follow."""
        self._orders.write(msgspec.json.encode(order) + b"\n")
        self._orders.flush()

    def finish(self) -> Done:
        """Wait for what was begun. Raises LabError where the process has ended."""
        line = self._output.readline()
        if not line:
            raise LabError(f"the API server has ended with status {self._process.wait()}")
        return self._decoder.decode(line)


def stop_collecting() -> None:
    """Never collect garbage again in this process, whose pauses would count as the agent's.

    A full collection of 10,000 Services, their slices and the history takes 50 to 70 ms. Objects
    of the API are in no cycles, and the process ends with its measurement.
    """
    gc.collect()
    gc.disable()


@contextmanager
def running(
    module: str, size: Size, done: type[Done], *more: object
) -> Iterator[OrderedServer[Done]]:
    """Run `python -m module SERVICES ENDPOINTS MORE…`, which prints its URL once it holds all.

    Raises LabError where the process does not start.
    """
    command = [sys.executable, "-m", module, str(size.services), str(size.endpoints)]
    command += map(str, more)
    command = with_default_signals(command)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        orders, output = pipes(process)
        url = output.readline().decode().strip()
        if not url:
            raise LabError(f"the API server has ended with status {process.wait()}")
        try:
            yield OrderedServer(url, process, done)
        finally:
            orders.close()
