"""Commands that write to a pipe without a reader."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pyproxy import output_pipes

PYPROXY = (sys.executable, "-m", "pyproxy")
KUBECTL = (sys.executable, "-m", "pyproxy.kubectl")


def with_closed_pipe(*command: str, stderr: int = subprocess.PIPE) -> tuple[int, bytes]:
    """Return the exit status and standard error of a command whose output has no reader."""
    read, write = os.pipe()
    os.close(read)
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=write, stderr=stderr, check=False, timeout=60
        )
    finally:
        os.close(write)
    return ended.returncode, ended.stderr or b""


@pytest.mark.parametrize(
    "command",
    [
        (*PYPROXY, "version"),
        (*PYPROXY, "--version"),
        (*PYPROXY, "version", "-o", "json"),
        (*PYPROXY, "run", "--version"),
        (*PYPROXY, "--help"),
        (*PYPROXY, "run", "--help"),
        (*PYPROXY, "status", "--help"),
        (*PYPROXY, "completion", "bash"),
        (*PYPROXY, "lab", "--help"),
        (*KUBECTL, "--help"),
        (*KUBECTL, "status", "--help"),
        (sys.executable, "-u", "-m", "pyproxy", "version"),
    ],
    ids=lambda command: " ".join(command[1:]),
)
def test_a_command_ends_in_silence(command: tuple[str, ...]) -> None:
    assert with_closed_pipe(*command) == (0, b"")


def test_a_long_output_ends_in_silence(tmp_path: Path) -> None:
    """Many Services: more than a buffer, so that a write fails in the middle of the command."""
    for number in range(300):
        (tmp_path / f"{number}.yaml").write_text(
            f"{{apiVersion: v1, kind: Service, metadata: {{name: s{number}, namespace: n}},"
            f" spec: {{clusterIP: 10.96.1.{number % 250 + 1}, ports: [{{port: 80}}]}}}}"
        )
    flags = ("--no-agent", f"--manifests={tmp_path}", "--hostname-override=a")
    assert with_closed_pipe(*PYPROXY, "services", *flags) == (0, b"")


def test_other_statuses_stay() -> None:
    status, text = with_closed_pipe(*PYPROXY, "version", "--no-such-flag")
    assert (status, text.count(b"\n")) == (2, 1)


def test_standard_error_may_be_the_same_pipe() -> None:
    assert with_closed_pipe(*PYPROXY, "version", stderr=subprocess.STDOUT) == (0, b"")


def test_a_closed_descriptor_is_no_error() -> None:
    command = f"exec {' '.join(PYPROXY)} version >&-"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_another_pipe_that_breaks_is_an_error() -> None:
    one, other = socket.socketpair()
    other.close()

    def command() -> int:
        one.sendall(b"x")
        return 0

    with one, pytest.raises(BrokenPipeError):
        output_pipes.run(command)
