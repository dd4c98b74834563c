"""Coverage-guided fuzzing with atheris: `python -m tests.fuzz.guided [SECONDS]`, as in `make fuzz`.

atheris is not a dependency of pyproxy: without it, this prints a line and exits with status 0. Each
target runs for SECONDS (default 60) in a process of its own, and must raise nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable

SECONDS = 60


def api(data: bytes) -> None:
    """Read objects of each kind, a list and a watch."""
    from pyproxy.errors import SourceError  # noqa: PLC0415
    from pyproxy.model.objects import Kind  # noqa: PLC0415
    from pyproxy.source import stream  # noqa: PLC0415
    from pyproxy.source.decode import decode_object  # noqa: PLC0415

    for kind in Kind:
        decode_object(kind, data)
    with contextlib.suppress(SourceError):
        stream.object_list(data, "ServiceList")
    try:
        for line in stream.lines([data]):
            stream.bookmark(stream.event(line).object)
    except SourceError:
        pass


def netlink(data: bytes) -> None:
    """Parse a message as each kind that the kernel sends."""
    from pyproxy.errors import KernelError  # noqa: PLC0415
    from pyproxy.model.address import Family  # noqa: PLC0415
    from pyproxy.netlink import elements, flows, nftables  # noqa: PLC0415
    from pyproxy.netlink.frames import read_messages  # noqa: PLC0415
    from pyproxy.netlink.kernel_errors import read_error  # noqa: PLC0415

    replies = [memoryview(data)]
    nftables.read_table_names(replies)
    nftables.read_chains(replies, "pyproxy")
    nftables.read_rules(replies)
    nftables.read_sets(replies)
    for shape in elements.Shape:
        elements.read_elements(replies, shape)
    for _, flags, _, _, message in read_messages(data):
        read_error(message, flags, 0)
    for family in Family:
        with contextlib.suppress(KernelError):
            flows.read_flows(data, family)


def addresses(data: bytes) -> None:
    """Read an address and a network."""
    from pyproxy.source import fields  # noqa: PLC0415

    text = data.decode(errors="replace")
    for parse in (fields.address, fields.network):
        with contextlib.suppress(ValueError):
            parse(text)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "api": api,
    "netlink": netlink,
    "addresses": addresses,
}


def _fuzz(target: str, seconds: int) -> None:
    import atheris  # noqa: PLC0415

    with atheris.instrument_imports(include=["pyproxy"]):
        TARGETS[target](b"{}")
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-verbosity=0"], TARGETS[target])
    atheris.Fuzz()


def main() -> int:
    """Run every target; the exit status is 1 if one failed."""
    if importlib.util.find_spec("atheris") is None:
        print("skipped: atheris is not installed (pip install atheris)")
        return 0
    if len(sys.argv) == 3:
        _fuzz(sys.argv[2], int(sys.argv[1]))
    seconds = sys.argv[1] if len(sys.argv) > 1 else str(SECONDS)
    failed = []
    for target in TARGETS:
        print(f"fuzzing {target} for {seconds} s", flush=True)
        command = [sys.executable, "-m", "tests.fuzz.guided", seconds, target]
        if subprocess.run(command, check=False).returncode:
            failed.append(target)
    print(f"failed: {', '.join(failed)}" if failed else "nothing to complain about")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
