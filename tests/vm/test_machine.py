"""Which kernel the virtual machine boots, and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm import machine
from tests.vm.machine import BOOT_VARIABLE, KERNEL_VARIABLE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with two kernels, which the machine uses."""
    for suite, version in (("bullseye", "5.10"), ("trixie", "6.12")):
        boot = tmp_path / f"kernel-{suite}" / "boot"
        boot.mkdir(parents=True)
        (boot / f"vmlinuz-{version}").touch()
    monkeypatch.setattr(machine, "FOLDER", tmp_path)
    monkeypatch.setattr(machine, "_found", lambda tool: f"/bin/{tool}")
    monkeypatch.delenv(KERNEL_VARIABLE, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "booted"), [("", "vmlinuz-5.10"), ("trixie", "vmlinuz-6.12")], ids=["oldest", "trixie"]
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
