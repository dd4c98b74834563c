"""Programs of busybox that the machine lacks, such as nslookup and nc, for commands in pods."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_WANTED = (
    "hostname", "ifconfig", "nc", "netstat", "nslookup", "ping", "ping6", "telnet", "traceroute",
    "wget",
)  # fmt: skip


def provide(folder: Path) -> Path:
    """Make a folder of links to busybox, for PATH; without busybox it is empty."""
    folder.mkdir(exist_ok=True)
    busybox = shutil.which("busybox")
    if busybox is None:
        return folder
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=False)
    applets = set(listed.stdout.split())
    for name in _WANTED:
        link = folder / name
        if name in applets and shutil.which(name) is None and not link.exists():
            link.symlink_to(busybox)
    return folder
