"""iptables' own programs: what is run, and what their failures mean.

Facts: iptables 1.8's sources. A program that waited for the lock in vain ends with status 4.
"""

from __future__ import annotations

import fcntl
import logging
import re
import shutil
import subprocess
from pathlib import Path

from pyproxy.dataplane.iptables.saved import SavedTable, parse
from pyproxy.errors import (
    KernelError,
    PermissionKernelError,
    RejectedError,
    TransientKernelError,
    UsageError,
)
from pyproxy.model.address import Family
from pyproxy.model.flavour import Flavour

log = logging.getLogger(__name__)

_NAMES = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
_LOCK_SECONDS = "5"
_LOCK_FILE = Path("/run/xtables.lock")
_RESOURCE_PROBLEM = 4
_HINTS = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")
_LINE = re.compile(r"\b(?:line:? )(\d+)")


class RestoreError(RejectedError):
    """iptables-restore did not take its input; `line` is the text at fault, empty if unknown."""

    def __init__(self, message: str, line: str) -> None:
        super().__init__(message, 0)
        self.line = line


class Programs:
    """The programs of one flavour and family, run in the network namespace of the caller."""

    def __init__(self, family: Family, flavour: Flavour) -> None:
        self._name = f"{_NAMES[family]}-{flavour.value}"
        self._flavour = flavour
        self.writes = 0
        self.bytes_written = 0
        self.lock_waits = 0

    def __str__(self) -> str:
        return self._name

    def require(self) -> None:
        """Find out whether it is installed. Raises UsageError."""
        for program in (f"{self._name}-restore", f"{self._name}-save"):
            if shutil.which(program) is None:
                raise _missing(program)

    def prepare(self) -> None:
        """Find out whether it works here, by a write that changes nothing. Raises UsageError."""
        self.require()
        try:
            self.restore(["*nat", "COMMIT"])
        except PermissionKernelError as error:
            raise UsageError(
                f"no permission to use {self._name}: run as root, or with CAP_NET_ADMIN and "
                "CAP_NET_RAW"
            ) from error
        except KernelError as error:
            raise UsageError(f"this kernel has no nat table for {self._name} ({error})") from error

    def save(self) -> dict[str, SavedTable]:
        """Read all tables back. Raises KernelError, and UsageError where it is not installed."""
        return parse(self._run([f"{self._name}-save"], ""))

    def restore(self, lines: list[str]) -> None:
        """Write some chains and leave the others alone. Raises KernelError, RestoreError."""
        text = "\n".join((*lines, ""))
        if self._flavour is Flavour.LEGACY and _is_locked():
            self.lock_waits += 1
            log.info("waiting for the lock of iptables, which another program holds")
        self.writes += 1
        self.bytes_written += len(text)
        self._run([f"{self._name}-restore", "--noflush", "--wait", _LOCK_SECONDS], text)

    @staticmethod
    def _run(command: list[str], text: str) -> str:
        try:
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise _missing(command[0]) from error
        if done.returncode == 0:
            return done.stdout
        words = f"{command[0]}: {' '.join(done.stderr.split())[:500]}"
        if "ermission denied" in words or "not permitted" in words:
            raise PermissionKernelError(f"{words}: it needs CAP_NET_ADMIN and CAP_NET_RAW", 0)
        if done.returncode == _RESOURCE_PROBLEM and "line" not in words:
            raise TransientKernelError(words, 0)
        found = _LINE.search(done.stderr)
        number = int(found.group(1)) if found else 0
        line = "" if number == 0 else text.split("\n", number)[number - 1]
        raise RestoreError(f"{words} {line}".strip(), line)


def _missing(program: str) -> UsageError:
    return UsageError(f"{program} is not on PATH: install the package iptables")


def _is_locked() -> bool:
    try:
        with open(_LOCK_FILE, "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        log.debug("cannot tell whether the lock of iptables is free: %s", error)
    return False


def detect() -> Flavour:
    """Find out which flavour the node's other programs use: kubelet's, or what has more rules.

    Facts: iptables-wrapper of Kubernetes' own images. kubelet makes the chains that are looked
    for; a program that fails has no rules.
    """
    found = {flavour: _saved_text(flavour) for flavour in (Flavour.NFT, Flavour.LEGACY)}
    for hint in _HINTS:
        for flavour, text in found.items():
            if f"\n:{hint} " in text:
                return flavour
    rules = {flavour: text.count("\n-A ") for flavour, text in found.items()}
    if rules[Flavour.LEGACY] > rules[Flavour.NFT]:
        return Flavour.LEGACY
    if shutil.which(f"{_NAMES[Family.IPV4]}-{Flavour.NFT.value}-restore") is None:
        return Flavour.LEGACY
    return Flavour.NFT


def _saved_text(flavour: Flavour) -> str:
    found = []
    for name in _NAMES.values():
        try:
            done = subprocess.run(
                [f"{name}-{flavour.value}-save"], capture_output=True, text=True, check=False
            )
        except OSError:  # it is not installed
            continue
        found.append(done.stdout)
    return "\n".join(found)
