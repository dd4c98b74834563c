"""`python -m tests.vm COMMAND`: run a shell command on the machine's kernel, in this tree."""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.vm.machine import Machine, boot_command, what_is_missing


def main(command: str) -> int:
    if missing := what_is_missing():
        print(missing, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="pyproxy-vm-") as name:
        folder = Path(name)
        said, status = folder / "said", folder / "status"
        said.touch()
        script = f"{{ {command}\n}} >/run/results/said 2>&1; echo $? >/run/results/status"
        with Machine(boot_command(folder, script), folder / "console") as machine:
            ended = threading.Event()
            follower = threading.Thread(target=_follow, args=(said, ended))
            follower.start()
            machine.wait()
            ended.set()
            follower.join()
            if status.exists():
                return int(status.read_text())
            print(machine.tail(), file=sys.stderr)
            return 1


def _follow(path: Path, ended: threading.Event) -> None:
    """Copy what is appended to a file to standard output, until it has ended."""
    with path.open("rb") as said:
        while True:
            last = ended.is_set()
            shutil.copyfileobj(said, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            if last:
                return
            time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
