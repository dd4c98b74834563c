"""A program under test in a namespace: started, watched, and ended for certain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pyproxy_lab.modes import NFTABLES, LabMode
from pyproxy_lab.namespace import LabError, Namespace
from pyproxy_lab.topology import Site

PATIENCE = 10.0
"""Seconds that a program has to end after SIGTERM, before SIGKILL."""

_LAST_LINES = 20


def agent_command(site: Site, kubeconfig: Path, mode: LabMode = NFTABLES) -> list[str]:
    """Write the command that runs this very pyproxy as a site's agent."""
    return [
        *(sys.executable, "-m", "pyproxy", "run"),
        *mode.flags,
        *("--hostname-override", site.node),
        *("--cluster-cidr", "10.244.0.0/16,fd10::/16"),
        *("--kubeconfig", str(kubeconfig)),
        *("--inspect-socket", str(socket_of(site.name, kubeconfig.parent))),
    ]


def socket_of(site_name: str, folder: Path) -> Path:
    """Give the path of the local socket of a site's agent, whose kubeconfig is in that folder."""
    return folder / f"{site_name}.sock"


class Agent:
    """A context manager: inside it the command runs, its output going to `log`."""

    def __init__(self, namespace: Namespace, command: Sequence[str], log: Path) -> None:
        self._namespace = namespace
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self.log = log

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process's id. Raises LabError where it was never started."""
        if self._process is None:
            raise LabError("the agent was not started")
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status, None while the program runs."""
        return None if self._process is None else self._process.poll()

    @property
    def running(self) -> bool:
        """Tell whether the program was started and has not ended."""
        return self._process is not None and self.status is None

    def start(self) -> None:
        """Run the program, for the first time or once more after `stop`."""
        with self.log.open("ab") as output:
            self._process = self._namespace.start(self._command, output=output)

    def stop(self) -> None:
        """End the program and whatever it has started; may be called twice."""
        if self._process is None or self._process.poll() is not None:
            return
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def require_alive(self) -> None:
        """Raise LabError, with the last that the program said, where it has ended."""
        if self.status is not None:
            said = self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
            raise LabError("\n  ".join([f"the agent has ended with status {self.status}:", *said]))


def pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    """Give what goes into a program and what comes out of it. Raises LabError without pipes."""
    if process.stdin is None or process.stdout is None:
        raise LabError(f"process {process.pid} was started without pipes")
    return process.stdin, process.stdout
