"""Boot the virtual machine, or name the missing requirement."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

TREE = Path(__file__).resolve().parents[2]
FOLDER = TREE / ".vm"
GUEST = Path(__file__).with_name("guest.sh")
TOOLS = ("qemu-system-x86_64", "busybox", "depmod", "file")
KERNEL_VARIABLE = "PYPROXY_VM_KERNEL"
"""The environment's name of the Debian suite whose kernel is booted."""
BOOT_VARIABLE = "PYPROXY_VM_BOOT"
"""The environment's name of further parameters of the kernel, such as ipv6.disable=1."""
DEFAULT = "bookworm"
"""The Debian suite with the oldest kernel that has all that pyproxy uses, Linux 6.1."""
TAIL = 40
"""Lines of the console that a failure shows."""

_MEMORY = "3G"
# The guest's clock counts its instructions, one a nanosecond, so emulation and a busy host do not
# shorten any time-out inside. It allows one processor, which is also the fastest to emulate.
_CLOCK = ("-icount", "shift=0,sleep=on")
_KERNEL = (
    # An oops ends the machine, as a panic does. The kernel takes this clock for a CPU stall.
    *("oops=panic", "panic=-1", "rcupdate.rcu_cpu_stall_suppress=1", "console=ttyS0", "loglevel=6"),
    # Hardening and hardware probes would cost a fifth of the work.
    *("mitigations=off", "nokaslr", "no5lvl", "init_on_alloc=0", "randomize_kstack_offset=off"),
    *("rodata=off", "hardened_usercopy=off", "audit=0", "security=none", "tsc=reliable"),
)


def suite() -> str:
    """Return the Debian suite whose kernel the machine boots."""
    return os.environ.get(KERNEL_VARIABLE) or DEFAULT


def kernels() -> list[Path]:
    """Return the suite's kernels that tools/vm-kernel.sh has unpacked."""
    return sorted((FOLDER / f"kernel-{suite()}" / "boot").glob("vmlinuz-*"))


def kernel_version() -> str:
    """Return the version of the kernel that the machine boots, empty if there is none."""
    return kernels()[-1].name.removeprefix("vmlinuz-") if kernels() else ""


def missing_requirement() -> str:
    """Return the first missing requirement of a boot, empty if there is none."""
    for tool in TOOLS:
        if _found(tool) is None:
            return f"the virtual machine needs the command {tool}"
    if not _vng().exists():
        return "the virtual machine needs virtme-ng: pip install -e '.[dev]'"
    if not kernels():
        return f"the virtual machine needs a kernel: tools/vm-kernel.sh .vm {suite()}"
    return ""


def _found(tool: str) -> str | None:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return shutil.which(tool, path=path)


def _vng() -> Path:
    return Path(sys.executable).with_name("vng")


def boot_command(results: Path, script: str) -> list[str]:
    """Return the command that boots the machine, runs `script` in the tree and ends.

    `results` is a folder that the guest may write to, as /run/results. There must be a kernel.
    """
    kernel = kernels()[-1]
    modules = kernel.parents[1] / "lib" / "modules"
    (results / "command").write_text(script)
    shares = [
        _share("host", Path("/"), ",readonly=on,multidevs=remap"),
        _share("results", results, ""),
    ]
    # virtme-ng knows the kernel and QEMU options for such a root. Its own init takes half a minute
    # to start services that the tests do not need, so guest.sh replaces it.
    busybox = _found("busybox")
    variables = [f"vm_tree={TREE}", f"vm_modules={modules}", f"vm_busybox={busybox}"]
    further = os.environ.get(BOOT_VARIABLE, "").split()
    line = [*_KERNEL, *further, *variables, f"init={busybox}", "--", "sh", str(GUEST)]
    unpacked = kernel.with_name(kernel.name.replace("vmlinuz", "vmlinux"))
    options = [
        *(*_CLOCK, *shares, *_disk(FOLDER / "python")),
        *("-kernel", str(unpacked if unpacked.exists() else kernel)),
        *("-append", shlex.quote(" ".join(line))),
    ]
    return [
        # The guest has one thread and the most work of all: it must never wait for other tests.
        *("nice", "-n", "-10", str(_vng()), "--run", str(kernel), "--disable-kvm", "--verbose"),
        *("--user", "root", "--cpus", "1", "--memory", _MEMORY, "--cwd", "/"),
        f"--qemu-opts={' '.join(options)}",
        *("--", "true"),
    ]


def _share(tag: str, path: Path, options: str) -> str:
    return (
        f"-fsdev local,id={tag},path={path},security_model=none{options} "
        f"-device virtio-9p-pci,fsdev={tag},mount_tag={tag}"
    )


def _disk(image: Path) -> list[str]:
    """Attach the image of tools/vm-image.sh if it exists."""
    return [f"-drive file={image},if=virtio,format=raw,readonly=on"] if image.exists() else []


_GUARDED = """\
exec 3<&0
{ cat <&3; kill -KILL 0; } &
exec "$@" 3<&- </dev/null
"""
"""A shell script that runs a command, and kills its process group at the end of standard input.

The kernel closes the other end of a pipe however a process ends, SIGKILL included. A signal at the
parent's death (PR_SET_PDEATHSIG) would reach virtme-ng, but not QEMU, which it starts.
"""


class VirtualMachine:
    """A context manager that boots the machine and ends it.

    `command` comes from `boot_command`; the kernel and the tests print to the file `console`. The
    machine ends with the process that booted it, even if that is killed.
    """

    def __init__(self, command: Sequence[str], console: Path) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self.console = console

    def __enter__(self) -> Self:
        self.boot()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def boot(self) -> None:
        """Start the machine without waiting for it."""
        path = os.pathsep.join([str(_vng().parent), os.environ["PATH"], "/usr/sbin", "/sbin"])
        with self.console.open("wb") as output:
            self._process = subprocess.Popen(
                ["sh", "-c", _GUARDED, "sh", *self._command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PATH": path},
                start_new_session=True,
            )

    def end(self) -> None:
        """End the machine and its helper processes; idempotent."""
        if self._process is None:
            return
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    @property
    def running(self) -> bool:
        """Return whether the machine still runs."""
        return self._process is not None and self._process.poll() is None

    def wait(self) -> None:
        """Block until the machine ends."""
        if self._process is not None:
            self._process.wait()

    def tail(self) -> str:
        """Return the last lines of the console."""
        return "\n".join(self.console.read_text(errors="replace").splitlines()[-TAIL:])
