"""Run the image's /go-runner as kops does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .manifests import ROOT

RUNNER = (sys.executable, "-IS", str(ROOT / "deploy/image/go_runner.py"))
# Shells start background commands with SIGINT ignored, and bash cannot trap an ignored signal.
DEFAULT_SIGNALS = ("env", "--default-signal=INT")
BOTH = ("sh", "-c", "echo out; echo err >&2; exit 7")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUNNER, *arguments], capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize(
    ("flags", "out", "err", "logged"),
    [
        ((), "out\nerr\n", "", None),
        (("--",), "out\nerr\n", "", None),
        (("--redirect-stderr=false",), "out\n", "err\n", None),
        (("-also-stdout",), "out\nerr\n", "", None),
        (("--log-file=LOG",), "", "", "out\nerr\n"),
        (("--log-file=LOG", "--also-stdout"), "out\nerr\n", "", "out\nerr\n"),
        (("-log-file", "LOG", "-also-stdout=true"), "out\nerr\n", "", "out\nerr\n"),
        (("--log-file=LOG", "--also-stdout=f"), "", "", "out\nerr\n"),
        (("--log-file=LOG", "--redirect-stderr=0"), "", "err\n", "out\n"),
        (("--log-file=LOG", "--also-stdout", "--redirect-stderr=0"), "out\n", "err\n", "out\n"),
    ],
)
def test_output_goes_where_the_flags_direct_it(
    tmp_path: Path, flags: tuple[str, ...], out: str, err: str, logged: str | None
) -> None:
    log = tmp_path / "kube-proxy.log"
    if logged is not None:
        log.write_text("before\n")
    ended = run(*(flag.replace("LOG", str(log)) for flag in flags), *BOTH)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, out, err)
    assert (log.read_text() if log.exists() else None) == (
        logged if logged is None else f"before\n{logged}"
    )


@pytest.mark.parametrize("flags", [(), ("--also-stdout",)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_command(
    tmp_path: Path, flags: tuple[str, ...], number: signal.Signals
) -> None:
    # The read ends at the signal at once; a sleep would delay the trap.
    script = "trap 'echo got; exit 5' TERM INT; echo ready; read line; exit 1"
    log = tmp_path / "log"
    with subprocess.Popen(
        [*DEFAULT_SIGNALS, *RUNNER, f"--log-file={log}", *flags, "bash", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 30
        while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        status = process.wait(30)
    assert (status, log.read_text()) == (5, "ready\ngot\n")


@pytest.mark.parametrize(
    ("flags", "status"),
    # The process becomes the command, except where it copies the output: then 128 is added.
    [((), -9), (("--log-file=LOG",), -9), (("--log-file=LOG", "--also-stdout"), 137)],
)
def test_a_command_that_a_signal_ends_has_the_status_of_shells(
    tmp_path: Path, flags: tuple[str, ...], status: int
) -> None:
    log = tmp_path / "log"
    ended = run(*(each.replace("LOG", str(log)) for each in flags), "sh", "-c", "kill -9 $$")
    assert ended.returncode == status


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose capability it drops")
def test_a_read_only_log_is_named_and_nothing_runs(tmp_path: Path) -> None:
    log, ran = tmp_path / "log", tmp_path / "ran"
    log.touch(0o444)
    owner = ("setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override")
    for flags in ((), ("--also-stdout",)):
        ended = subprocess.run(
            [*owner, *RUNNER, f"--log-file={log}", *flags, "touch", str(ran)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        message = f"go-runner: --log-file {log}: cannot be opened: Permission denied\n"
        assert (ended.returncode, ended.stderr) == (2, message)
    assert not ran.exists()


def test_a_surviving_grandchild_does_not_delay_the_end(tmp_path: Path) -> None:
    script = "sleep 600 & echo $!; echo last"
    ended = run(f"--log-file={tmp_path / 'log'}", "--also-stdout", "sh", "-c", script)
    child, last = ended.stdout.split()
    os.kill(int(child), signal.SIGKILL)
    assert last == "last"


def test_a_full_disk_leaves_standard_output() -> None:
    ended = run("--log-file=/dev/full", "--also-stdout", *BOTH)
    assert (ended.returncode, ended.stdout) == (7, "out\nerr\n")
    assert ended.stderr.endswith("is closed: No space left on device\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "no command is given"),
        ("--also-stdout", "no command is given"),
        ("--log-file", "--log-file: its value is missing: write --log-file=FILE"),
        ("--also-stdout=yes a", "--also-stdout: 'yes' is not a boolean: use true or false"),
        (
            "--logfile=a b",
            "unknown flag --logfile=a: use one of --log-file, --also-stdout, --redirect-stderr",
        ),
        ("--log-file=/none/a b", "--log-file /none/a: cannot be opened: No such file or directory"),
        ("--log-file=/ --also-stdout b", "--log-file /: cannot be opened: Is a directory"),
        ("--redirect-stderr=false /none", "/none: cannot be run: No such file or directory"),
        (
            "--log-file=/dev/null --also-stdout /none",
            "/none: cannot be run: No such file or directory",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(arguments: str, message: str) -> None:
    ended = run(*arguments.split())
    assert (ended.returncode, ended.stderr) == (2, f"go-runner: {message}\n")
