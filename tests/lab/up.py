"""`pyproxy lab up` as a process of its own, and what is left of it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyproxy_lab.leftovers import MARKER, NETNS_FILES
from pyproxy_lab.namespace import NETNS_FOLDER, Namespace, with_default_signals

from tests.waiting import until

PYPROXY = [sys.executable, "-m", "pyproxy"]


class Up:
    """A process of `lab up`; its output is in a file beside the folder of its state."""

    def __init__(self, folder: Path, flags: Sequence[str] = ()) -> None:
        self.folder = folder
        self.output = folder.with_suffix(".out")
        self.links_before = links_of_labs()
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                with_default_signals([*PYPROXY, "lab", "up", "--state", str(folder), *flags]),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def text(self) -> str:
        return self.output.read_text()

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.text
        return "ready after" in self.text

    def await_ready(self) -> None:
        until(self.is_ready, lambda: f"the lab is not ready: {self.text}", patience=120)

    def namespace(self, name: str) -> Namespace:
        (path,) = NETNS_FOLDER.glob(f"lab{self.pid}-*-0-{name}")
        return Namespace(path.name)

    def namespaces(self) -> list[Path]:
        return list(NETNS_FOLDER.glob(f"lab{self.pid}-*"))

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def leftovers(self) -> list[str]:
        """Return all that exists of this lab outside of its process."""
        found = [*self.namespaces(), *NETNS_FILES.glob(f"lab{self.pid}-*")]
        found += self.folder.parent.glob(f".{self.folder.name}.*")
        if self.folder.exists():
            found += [self.folder, *self.folder.iterdir()]
        # No link of a lab belongs here, but other programs name theirs so too.
        links = [f"link {name}" for _, name in links_of_labs() - self.links_before]
        return [str(path) for path in found] + [*programs_of(self.pid), *links]


def programs_of(pid: int) -> Iterator[str]:
    """Yield the programs that the process of a lab has started, and their children's."""
    marker = f"{MARKER}={pid}-".encode()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes()
            if any(each.startswith(marker) for each in environment.split(b"\0")):
                yield f"process {path.name}: {(path / 'cmdline').read_bytes()!r}"
        except OSError:
            continue


def links_of_labs() -> set[tuple[int, str]]:
    """Return number and name of the links named as a lab's in this thread's network namespace."""
    return {(number, name) for number, name in socket.if_nameindex() if name.startswith("v-")}


def lab(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `lab down` or `lab env`."""
    return subprocess.run(
        [*PYPROXY, "lab", command, "--state", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@contextmanager
def running(folder: Path, *flags: str) -> Iterator[Up]:
    """Run a lab inside, which is ready, and end it with SIGTERM."""
    up = Up(folder, flags)
    try:
        up.await_ready()
        yield up
    finally:
        if up.process.poll() is None:
            up.end(signal.SIGTERM)
