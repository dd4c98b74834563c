"""Which kernel the virtual machine boots, and how."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vm import machine
from tests.vm.machine import BOOT_VARIABLE, KERNEL_VARIABLE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with two kernels, which the machine uses."""
    for suite, version in (("bookworm", "6.1"), ("trixie", "6.12")):
        boot = tmp_path / f"kernel-{suite}" / "boot"
        boot.mkdir(parents=True)
        (boot / f"vmlinuz-{version}").touch()
    monkeypatch.setattr(machine, "FOLDER", tmp_path)
    monkeypatch.setattr(machine, "_found", lambda tool: f"/bin/{tool}")
    monkeypatch.delenv(KERNEL_VARIABLE, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "booted"), [("", "vmlinuz-6.1"), ("trixie", "vmlinuz-6.12")], ids=["default", "trixie"]
)
def test_the_environment_selects_the_kernel(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, booted: str
) -> None:
    monkeypatch.setenv(KERNEL_VARIABLE, name)
    command = machine.boot_command(folder, "true")
    assert Path(command[command.index("--run") + 1]).name == booted


def test_a_missing_kernel_is_named_with_the_command_that_gets_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KERNEL_VARIABLE, "sid")
    assert machine.missing_requirement().endswith("tools/vm-kernel.sh .vm sid")


def test_the_environment_adds_parameters_of_the_kernel(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BOOT_VARIABLE, "ipv6.disable=1")
    assert any(" ipv6.disable=1 " in part for part in machine.boot_command(folder, "true"))


BOOTS = """
import sys, time
from pathlib import Path
from tests.vm.machine import VirtualMachine

script = f"exec 9>{sys.argv[1]}; echo booted >&9; sleep 600 & wait"
with VirtualMachine(["sh", "-c", script], Path(sys.argv[2])):
    time.sleep(600)
"""


def test_the_machine_ends_when_the_process_that_booted_it_is_killed(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)

    def read() -> bytes:
        # Its end is that of the last process with the fifo, the machine's child.
        assert select.select([reader], [], [], 60)[0]
        return os.read(reader, 100)

    command = [sys.executable, "-c", BOOTS, str(fifo), str(tmp_path / "console")]
    try:
        with subprocess.Popen(command, cwd=machine.TREE) as parent:
            assert read() == b"booted\n"
            parent.kill()
            assert read() == b""
    finally:
        os.close(reader)
