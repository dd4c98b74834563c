"""`python -m pyproxy.netlink.drop_guard`: switch the drop monitor off when the parent ends.

The kernel leaves the monitor on when a process that switched it on is killed. The kernel closes the
parent's end of standard input however the parent ends, so this process waits for that.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pyproxy.errors import KernelError
from pyproxy.netlink.drop_monitor import stop_abandoned


@contextmanager
def running() -> Iterator[None]:
    """Run the guard of this process inside. Raises OSError if no process can be started."""
    guard = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Ctrl-C goes to the parent's process group.
        start_new_session=True,
    )
    try:
        yield
    finally:
        guard.kill()
        guard.communicate()


def main() -> None:
    """Wait for the end of standard input, then switch an abandoned monitor off."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.stdin.buffer.read()
    with suppress(KernelError):  # another program has the monitor by now
        stop_abandoned()


if __name__ == "__main__":
    main()
