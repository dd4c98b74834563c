"""Network namespaces by name: make, enter and remove them, and run programs in them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Generic, TypeVar

from pyproxy.errors import PyproxyError, UsageError

NETNS_FOLDER = Path("/run/netns")

HAS_IPV6 = Path("/proc/sys/net/ipv6").exists()
"""Whether this kernel has IPv6; with the parameter ipv6.disable=1 it has none."""

_INTERRUPTIONS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)

# os.setns needs Python 3.12, and pyroute2 takes longer to import than all of the lab.
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000

Value = TypeVar("Value")


class LabError(PyproxyError):
    """A part of the lab could not be set up, or did not behave as required."""


class Namespace:
    """A network namespace under /run/netns."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(
        self, command: Sequence[str], *, text: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside to its end, with `text` as its input. Raises LabError."""
        return execute(["ip", "netns", "exec", self.name, *command], text=text, check=check)

    def start(
        self,
        command: Sequence[str],
        *,
        stdin: int = subprocess.DEVNULL,
        output: IO[bytes] | int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program inside, in its own session, so that Ctrl-C does not reach it.

        `output` receives its standard output and its errors; with None it inherits both.
        """
        return subprocess.Popen(
            with_default_signals(["ip", "netns", "exec", self.name, *command]),
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            start_new_session=True,
        )

    def call(self, function: Callable[[], Value]) -> Value:
        """Call a function in a thread that has entered the namespace, and return its value.

        A socket stays in the namespace in which it was made, so the function may return one.
        """
        visit = _Visit(self.name, function)
        visit.start()
        visit.join()
        return visit.outcome()

    def ip(self, lines: Iterable[str]) -> None:
        """Run a batch of `ip` commands inside. Raises LabError at the first that fails.

        Without IPv6 in the kernel, commands with an IPv6 address are left out.
        """
        ip((line for line in lines if HAS_IPV6 or "::" not in line), options=["-n", self.name])

    def sysctl(self, values: Mapping[str, int]) -> None:
        """Write sysctls below /proc/sys/net; those that this kernel lacks are skipped."""

        def write() -> None:
            for key, value in values.items():
                path = Path("/proc/sys/net", key)
                if path.exists():
                    path.write_text(str(value))

        self.call(write)


class _Visit(threading.Thread, Generic[Value]):
    """A thread that enters a namespace and ends there: setns moves the calling thread alone."""

    def __init__(self, name: str, function: Callable[[], Value]) -> None:
        super().__init__(daemon=True)
        self._name_of_namespace = name
        self._function = function
        self._values: list[Value] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            enter(self._name_of_namespace)
            self._values.append(self._function())
        except BaseException as error:  # raised again in the thread that called
            self._error = error

    def outcome(self) -> Value:
        """Return the function's value, or raise its exception."""
        if self._error is not None:
            raise self._error
        return self._values[0]


def enter(name: str) -> None:
    """Move the calling thread, and the threads that it starts from now on, to a namespace.

    Raises OSError.
    """
    path = NETNS_FOLDER / name
    with path.open("rb") as file:
        if _LIBC.setns(file.fileno(), _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))


def make_namespaces(names: Sequence[str], sysctls: Mapping[str, int]) -> None:
    """Make namespaces and write their sysctls. Raises LabError."""
    ip(f"netns add {name}" for name in names)
    for name in names:
        Namespace(name).sysctl(sysctls)


def with_default_signals(command: Sequence[str]) -> list[str]:
    """Return the command, run with default signals where this process ignores some of them.

    An ignored signal stays ignored across exec. A shell without job control starts background
    programs with SIGINT and SIGQUIT ignored, and nohup with SIGHUP.
    """
    ignored = [each.name for each in _INTERRUPTIONS if signal.getsignal(each) is signal.SIG_IGN]
    if not ignored:
        return list(command)
    names = ",".join(name.removeprefix("SIG") for name in ignored)
    return ["env", f"--default-signal={names}", *command]


def execute(
    command: Sequence[str], *, text: str = "", check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end. Raises LabError with its error output."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UsageError(f"lab: the command {command[0]} is missing: install it") from error
    if check and done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done


def ip(lines: Iterable[str], *, options: Sequence[str] = ()) -> None:
    """Run a batch of `ip` commands. Raises LabError at the first that fails."""
    execute(["ip", *options, "-batch", "-"], text="\n".join(lines))


def require_root() -> None:
    """Check that namespaces can be made. Raises UsageError."""
    if os.geteuid() != 0:
        raise UsageError("lab: network namespaces need root: run it with sudo")
