"""A container: a process in its pod's network namespace, its log file, and its exit status."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyproxy_lab
from pyproxy_lab import leftovers
from pyproxy_lab.apiserver.exec import Streams
from pyproxy_lab.client import JsonObject
from pyproxy_lab.workloads import images, terminal

DRAIN = 1.0
"""Seconds that the lab's server responds after SIGTERM."""

_LARGEST_LOG = 1 << 20

_KEPT = ("HOME", "LANG", "PATH", leftovers.MARKER)
"""Variables of this process that programs in pods have too."""

_HOME = str(Path(pyproxy_lab.__file__).parents[1])
_SERVE = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from pyproxy_lab.workloads.pod_server import serve; sys.exit(serve(sys.argv[2:]))"
)
# The name is that of `kubectl exec pod -- hostname`. `ip netns exec` has made a mount namespace.
_NAMED = 'echo "$1" >/proc/sys/kernel/hostname; shift; exec "$@"'


def inside(namespace: str, hostname: str, command: Sequence[str]) -> list[str]:
    """Return the command that runs a program in a pod: in its network, under its name."""
    return [
        *("ip", "netns", "exec", namespace),
        *("unshare", "--uts", "sh", "-c", _NAMED, "sh", hostname, *command),
    ]


class Container:
    """One container of a pod. Its methods belong to one event loop.

    `variables` are those of its environment that its pod has from the cluster.
    """

    def __init__(
        self,
        spec: JsonObject,
        pod: JsonObject,
        namespace: str,
        folder: Path,
        tools: Path,
        variables: Mapping[str, str],
    ) -> None:
        self.name: str = spec["name"]
        self.image: str = spec["image"]
        self.restarts = 0
        self.exit_code: int | None = None
        self.started = False
        meta = pod["metadata"]
        self.log = folder / f"{meta['uid']}.{self.name}.log"
        self.log.touch()
        self._namespace = namespace
        self._pod_name: str = pod["spec"].get("hostname") or meta["name"]
        self._tools = tools
        own = {each["name"]: each.get("value", "") for each in spec.get("env") or ()}
        self._env = {**variables, **own}
        self._role = images.role(spec, self._find)
        self._tty = bool(spec.get("tty"))
        self.waits_for_client = bool(spec.get("stdin") and self._role.command)
        """Whether its command begins when `kubectl attach` or `kubectl run -i` has connected."""
        self.first_port = self._role.ports[0] if self._role.ports else 0
        """The port that the lab's server opens last, 0 for a container with a command."""
        self._process: asyncio.subprocess.Process | None = None
        self._attached = False

    @property
    def running(self) -> bool:
        """Whether its process runs, or waits for a client that attaches."""
        return self.started and self.exit_code is None

    def environment(self) -> dict[str, str]:
        """Return the environment of programs in it."""
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}:{self._tools}"
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        return kept | self._env | {"PATH": programs, "HOSTNAME": self._pod_name}

    async def start(self) -> None:
        """Start its process, unless that waits for a client."""
        self.started, self.exit_code = True, None
        if self.waits_for_client:
            return
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *inside(self._namespace, self._pod_name, self._command()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.environment(),
                start_new_session=True,
            )

    async def attach(self, streams: Streams, *, tty: bool) -> int:
        """Run its command with a client's streams; return its exit status.

        A container whose process runs already shows nothing of it: returns 1.
        """
        if not self.waits_for_client or self._attached:
            return 1
        self._attached = True
        code = await self.run(self._command(), streams, tty=tty and self._tty)
        self.exit_code = code
        return code

    async def run(self, command: Sequence[str], streams: Streams, *, tty: bool) -> int:
        """Run another program beside it, to its end; return its exit status."""
        program = inside(self._namespace, self._pod_name, command)
        return await terminal.run(program, streams, self.environment(), tty=tty)

    def poll(self) -> int | None:
        """Return the exit status of a process that has ended; also bound the log."""
        if self.log.exists() and self.log.stat().st_size > _LARGEST_LOG:
            os.truncate(self.log, 0)
        if self._process is not None and self.exit_code is None:
            code = self._process.returncode
            # A shell's status of a program that a signal has ended.
            self.exit_code = 128 - code if code is not None and code < 0 else code
        return self.exit_code

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to its process and those that it has started."""
        if self._process is None:
            if self.exit_code is None:
                self.exit_code = 128 + number
            return
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def wait(self) -> None:
        """Wait until its process has ended."""
        if self._process is not None:
            await self._process.wait()
            self.poll()

    def _command(self) -> Sequence[str]:
        if self._role.command:
            return self._role.command
        mark = "" if self._role.declared else "?"
        ports = ",".join(f"{port}{mark}" for port in reversed(self._role.ports))
        name, version = self._pod_name, images.version(self.image)
        return [
            *(sys.executable, "-I", "-S", "-c", _SERVE, _HOME),
            *(name, version, str(DRAIN), ports),
        ]

    def _find(self, word: str) -> str | None:
        import shutil  # noqa: PLC0415

        return shutil.which(word, path=self.environment()["PATH"])
