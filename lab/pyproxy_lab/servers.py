"""The servers of a network's pods: one program forks them, and each can be ended alone."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pyproxy_lab.namespace import LabError, with_default_signals
from pyproxy_lab.process import pipes

_PROGRAM = Path(__file__).with_name("echo.py")


class Server(NamedTuple):
    """A server in a namespace, which responds with `name` on these ports."""

    namespace: str
    name: str
    ports: tuple[int, ...]


class Servers:
    """The running servers by namespace."""

    def __init__(self) -> None:
        self._programs: list[subprocess.Popen[bytes]] = []
        self._handles: dict[str, int] = {}

    def start(self, servers: Sequence[Server]) -> None:
        """Start these, and return once all their ports are open. Raises LabError."""
        words = [",".join([each.namespace, each.name, *map(str, each.ports)]) for each in servers]
        program = subprocess.Popen(
            with_default_signals([sys.executable, "-I", "-S", str(_PROGRAM), *words]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._programs.append(program)
        _, output = pipes(program)
        for _ in servers:
            line = output.readline().decode(errors="replace").strip()
            match line.split():
                case ["ready", namespace, pid]:
                    self._handles[namespace] = os.pidfd_open(int(pid))
                case _:
                    raise LabError(f"a pod's server did not start: {line}")

    def end(self, namespace: str) -> None:
        """Kill one; open connections are lost."""
        handle = self._handles.pop(namespace)
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            pass
        else:
            ended = select.poll()
            ended.register(handle, select.POLLIN)
            ended.poll()
        finally:
            os.close(handle)

    def end_all(self) -> None:
        """Kill all servers and the programs that forked them; may be called at any stage."""
        for namespace in list(self._handles):
            self.end(namespace)
        for program in self._programs:
            program.kill()
            for pipe in pipes(program):
                pipe.close()
            program.wait()
        self._programs.clear()
