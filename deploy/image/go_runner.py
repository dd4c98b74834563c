#!/opt/pyproxy/bin/python -IS
"""Run a command and redirect its output: the flags of Kubernetes' go-runner, for kops' manifests.

    /go-runner [--log-file=FILE [--also-stdout]] [--redirect-stderr=false] COMMAND [ARGUMENT...]

Standard error goes where standard output goes unless --redirect-stderr=false. This process becomes
the command, except with --also-stdout: then it copies the command's output, forwards signals, and
ends with the command's exit status. Facts: kube-log-runner of component-base, Go's package flag.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence

_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
_FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
_CHUNK = 65536


class UsageError(Exception):
    """A mistake of the user."""


def parse(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the flags, and the command with its arguments. Raises UsageError."""
    flags = {"log-file": "", "also-stdout": "false", "redirect-stderr": "true"}
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        argument = rest.pop(0)
        if argument == "--":
            break
        name, equals, value = argument.lstrip("-").partition("=")
        if name not in flags:
            raise UsageError(f"unknown flag {argument}: use one of --{', --'.join(flags)}")
        if name == "log-file":
            if not equals and not rest:
                raise UsageError("--log-file: its value is missing: write --log-file=FILE")
            flags[name] = value if equals else rest.pop(0)
        elif equals and value not in _TRUE + _FALSE:
            raise UsageError(f"--{name}: {value!r} is not a boolean: use true or false")
        else:
            flags[name] = "true" if not equals or value in _TRUE else "false"
    if not rest:
        raise UsageError("no command is given")
    return flags, rest


def run(flags: dict[str, str], command: Sequence[str]) -> int:
    """Run the command. Returns its exit status, or never if no output has to be copied."""
    path, with_errors = flags["log-file"], flags["redirect-stderr"] == "true"
    log = -1
    if path:
        try:
            log = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UsageError(f"--log-file {path}: cannot be opened: {error.strerror}") from error
    try:
        if path and flags["also-stdout"] == "true":
            return _copy(command, (1, log), with_errors)
        if path:
            os.dup2(log, 1)
        if with_errors:
            os.dup2(1, 2)
        # Python ignores this signal, and the command would inherit that.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvp(command[0], list(command))
    except OSError as error:
        raise UsageError(f"{command[0]}: cannot be run: {error.strerror}") from error


def _copy(command: Sequence[str], outputs: Iterable[int], with_errors: bool) -> int:
    received: list[int] = []
    for number in _FORWARDED:
        signal.signal(number, lambda number, _: received.append(number))
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT if with_errors else None
    )
    for number in _FORWARDED:
        signal.signal(number, lambda number, _: process.send_signal(number))
    for early in received:
        process.send_signal(early)
    assert process.stdout is not None
    source = process.stdout.fileno()
    os.set_blocking(source, False)
    # Children of the command may keep the pipe open, so its end is not that of the command.
    ended = os.pidfd_open(process.pid)
    working = list(outputs)
    while True:
        ready, _, _ = select.select([source, ended], [], [])
        try:
            chunk = os.read(source, _CHUNK)
        except BlockingIOError:
            chunk = b""
        working = [output for output in working if _write(output, chunk)]
        if not chunk and (ended in ready or source in ready):
            break
    status = process.wait()
    return status if status >= 0 else 128 - status


def _write(output: int, chunk: bytes) -> bool:
    """Write all of it, and return whether that worked: a full disk does not end the command."""
    try:
        while chunk:
            chunk = chunk[os.write(output, chunk) :]
    except OSError as error:
        print(f"go-runner: output {output} is closed: {error.strerror}", file=sys.stderr)
        return False
    return True


def main() -> int:
    """Return the exit status: that of the command, or 2 for a mistake of the user."""
    try:
        return run(*parse(sys.argv[1:]))
    except UsageError as error:
        print(f"go-runner: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
