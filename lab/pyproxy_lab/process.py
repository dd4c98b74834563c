"""A program under test in a namespace: start it, watch it, end it."""

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
from pyproxy_lab.topology import TWO_NODES, Site

PATIENCE = 10.0
"""Seconds from SIGTERM to SIGKILL."""

_LAST_LINES = 20


def agent_command(
    site: Site,
    kubeconfig: Path,
    mode: LabMode = NFTABLES,
    pod_networks: str = TWO_NODES.pod_networks,
) -> list[str]:
    """Return the command that runs this pyproxy as a site's agent."""
    return [
        *(sys.executable, "-m", "pyproxy", "run"),
        *mode.flags,
        *("--hostname-override", site.node),
        *("--cluster-cidr", pod_networks),
        *("--kubeconfig", str(kubeconfig)),
        *("--inspect-socket", str(socket_of(site.name, kubeconfig.parent))),
    ]


def proxy_flags(node_name: str, pod_networks: str, kubeconfig: Path) -> list[str]:
    """Return the flags that any program with kube-proxy's flags gets in a lab."""
    return [
        *("--hostname-override", node_name),
        *("--cluster-cidr", pod_networks),
        *("--kubeconfig", str(kubeconfig)),
        # Settings of the whole machine stay unchanged.
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0s",
        "--conntrack-tcp-timeout-close-wait=0s",
    ]


def socket_of(site_name: str, folder: Path) -> Path:
    """Return the path of the local socket of a site's agent; its kubeconfig is in that folder."""
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
        """Return whether the program was started and has not ended."""
        return self._process is not None and self.status is None

    def start(self) -> None:
        """Start the program; may be called again after `stop`."""
        with self.log.open("ab") as output:
            self._process = self._namespace.start(self._command, output=output)

    def terminate(self) -> None:
        """Send SIGTERM, without waiting; `stop` waits."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)

    def stop(self) -> None:
        """End the program and its children; may be called twice."""
        if self._process is None or self._process.poll() is not None:
            return
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def require_alive(self) -> None:
        """Raise LabError, with the program's last lines, where it has ended."""
        if self.status is not None:
            lines = self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
            raise LabError("\n  ".join([f"the agent has ended with status {self.status}:", *lines]))


def pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    """Return a program's standard input and output. Raises LabError without pipes."""
    if process.stdin is None or process.stdout is None:
        raise LabError(f"process {process.pid} was started without pipes")
    return process.stdin, process.stdout
