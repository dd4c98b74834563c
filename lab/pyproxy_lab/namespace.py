"""Network namespaces by name: made, entered and removed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Generic, TypeVar

from pyroute2 import netns

from pyproxy.errors import PyproxyError, UsageError

NETNS_FOLDER = Path("/run/netns")
INTERFACES = Path("/sys/class/net")
OURS = re.compile(r"lab(\d+)-\d+")

Value = TypeVar("Value")


class LabError(PyproxyError):
    """Something in the lab could not be set up, or did not answer as it must."""


class Namespace:
    """A network namespace under /run/netns."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(
        self, command: Sequence[str], *, text: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside to its end, `text` being its input. Raises LabError."""
        return execute(["ip", "netns", "exec", self.name, *command], text=text, check=check)

    def start(
        self,
        command: Sequence[str],
        *,
        stdin: int = subprocess.DEVNULL,
        output: IO[bytes] | int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program inside, in a session of its own so that Ctrl-C is ours to pass on.

        `output` takes both its standard output and its errors; None leaves them where they are.
        """
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command],
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            start_new_session=True,
        )

    def call(self, function: Callable[[], Value]) -> Value:
        """Call a function in a thread that has entered the namespace, and give what it gives.

        Sockets belong for good to the namespace in which they were made, so they may be returned.
        """
        visit = _Visit(self.name, function)
        visit.start()
        visit.join()
        return visit.outcome()

    def ip(self, lines: Iterable[str]) -> None:
        """Give `ip` a batch of commands inside. Raises LabError at the first that fails."""
        ip(lines, options=["-n", self.name])

    def sysctl(self, values: Mapping[str, int]) -> None:
        """Set kernel parameters below /proc/sys/net; those that this kernel lacks are left out."""

        def write() -> None:
            for key, value in values.items():
                path = Path("/proc/sys/net", key)
                if path.exists():
                    path.write_text(str(value))

        self.call(write)


class _Visit(threading.Thread, Generic[Value]):
    """A thread of its own in a namespace: namespaces belong to threads, and one is never reused."""

    def __init__(self, name: str, function: Callable[[], Value]) -> None:
        super().__init__(daemon=True)
        self._name_of_namespace = name
        self._function = function
        self._values: list[Value] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            netns.setns(self._name_of_namespace, flags=0)
            self._values.append(self._function())
        except BaseException as error:  # raised again, in the thread that asked
            self._error = error

    def outcome(self) -> Value:
        """Give the function's value, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._values[0]


def execute(
    command: Sequence[str], *, text: str = "", check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end. Raises LabError with what it said."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UsageError(f"lab: the command {command[0]} is missing: install it") from error
    if check and done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done


def ip(lines: Iterable[str], *, options: Sequence[str] = ()) -> None:
    """Give `ip` a batch of commands. Raises LabError at the first that fails."""
    execute(["ip", *options, "-batch", "-"], text="\n".join(lines))


def require_root() -> None:
    """Stop early where namespaces cannot be made. Raises UsageError."""
    if os.geteuid() != 0:
        raise UsageError("lab: network namespaces need root: run it with sudo")


def remove_abandoned() -> None:
    """Remove what labs whose process was killed have left: programs, namespaces and bridges."""
    for path in [*NETNS_FOLDER.glob("lab*"), *INTERFACES.glob("lab*")]:
        found = OURS.match(path.name)
        if found is None or Path("/proc", found[1]).exists():
            continue
        # Another lab that starts at this moment may be ahead of us in any of this.
        if path.parent == INTERFACES:
            execute(["ip", "link", "del", path.name], check=False)
            continue
        for pid in execute(["ip", "netns", "pids", path.name], check=False).stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        execute(["ip", "netns", "del", path.name], check=False)


@contextlib.contextmanager
def ending_well() -> Iterator[None]:
    """Inside it SIGTERM ends the program as Ctrl-C does, so that labs are removed."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
