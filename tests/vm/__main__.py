"""`python -m tests.vm COMMAND`: run a shell command in the virtual machine, in this tree."""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.vm.machine import VirtualMachine, boot_command, missing_requirement


def main(command: str) -> int:
    if missing := missing_requirement():
        print(missing, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="pyproxy-vm-") as name:
        folder = Path(name)
        output, status = folder / "output", folder / "status"
        output.touch()
        script = f"( {command}\n) >/run/results/output 2>&1; echo $? >/run/results/status"
        with VirtualMachine(boot_command(folder, script), folder / "console") as machine:
            ended = threading.Event()
            copier = threading.Thread(target=_copy_output, args=(output, ended))
            copier.start()
            machine.wait()
            ended.set()
            copier.join()
            if status.exists():
                return int(status.read_text())
            print(machine.tail(), file=sys.stderr)
            return 1


def _copy_output(path: Path, ended: threading.Event) -> None:
    """Copy a growing file to standard output until `ended` is set."""
    with path.open("rb") as file:
        while True:
            last = ended.is_set()
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            if last:
                return
            time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
