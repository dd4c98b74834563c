"""iptables' own programs: how they are run, and what their failures mean.

iptables-save and iptables-restore come in two flavours, each of which reads and writes only its own
rules. Facts: iptables 1.8's sources. The legacy flavour takes the lock /run/xtables.lock, and exits
with status 4 if it is not free in time. The nft flavour has no lock and ignores --wait.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from pyproxy.errors import (
    KernelError,
    PermissionKernelError,
    RejectedError,
    TransientKernelError,
    UsageError,
)
from pyproxy.model.address import Family
from pyproxy.model.flavour import Flavour
from pyproxy.netlink.kernel_errors import TRANSIENT
from pyproxy.xtables.nft_reader import NftReader
from pyproxy.xtables.saved import CountedRule, SavedTable, parse, parse_counters

_NAMES = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
_LOCK_SECONDS = "5"
_RESOURCE_PROBLEM = 4
# These files list the tables that exist, without creating any. /proc/self/net would be the main
# thread's network namespace; the caller's may be another.
_LEGACY_TABLES = {
    Family.IPV4: Path("/proc/thread-self/net/ip_tables_names"),
    Family.IPV6: Path("/proc/thread-self/net/ip6_tables_names"),
}
# Since Kubernetes 1.17 kubelet creates at least one of them, in the table mangle.
_KUBELET_CHAINS = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")
# "line 3 failed", "Error occurred at line: 3", "line 3: RULE_APPEND failed".
_LINE = re.compile(r"\b(?:line:? )(\d+)")
# iptables-nft-save prints this in the place of a table with a rule that another program, such as
# nft, has written and that iptables does not know. iptables-nft-restore still writes to the table.
_INCOMPATIBLE = re.compile(r"^# Table `(.+)' is incompatible\b", re.MULTILINE)
# "RULE_APPEND failed (Cannot allocate memory)" and, in iptables-legacy since 1.8.10, "failed: ...".
_REASON = re.compile(r"\bfailed(?: \(|: )([^().\n]+)")
# The same errors as of netlink; iptables-legacy has a text of its own for ENOMEM.
_TRANSIENT = {os.strerror(number) for number in TRANSIENT} | {"Memory allocation problem"}
# "Extension comment revision 0 not supported, missing kernel module?"
_EXTENSION = re.compile(r"\bExtension (\w+) revision \d+ not supported")


class RestoreError(RejectedError):
    """iptables-restore rejected its input.

    `faults` has a message for each line of the input at fault, and is empty if none is known.
    iptables-nft-restore 1.8.9 names the first eleven lines or so that the kernel rejects. A line
    that the program itself rejects is the only one named, because the program ends there.
    """

    def __init__(self, message: str, faults: Mapping[str, str] | None = None) -> None:
        super().__init__(message, 0)
        self.faults = faults or {}

    def of(self, line: str) -> RestoreError:
        """Return the error for one of the lines at fault."""
        return RestoreError(self.faults[line], {line: self.faults[line]})


class Programs(msgspec.Struct, frozen=True):
    """The programs of one family and flavour, such as `ip6tables-nft`.

    They run in the network namespace of the caller, and block.
    """

    family: Family
    flavour: Flavour

    def __str__(self) -> str:
        return f"{_NAMES[self.family]}-{self.flavour.value}"

    def is_installed(self) -> bool:
        """Return whether iptables-save is on PATH."""
        return shutil.which(f"{self}-save") is not None

    def require(self) -> None:
        """Check that the programs are on PATH. Raises UsageError."""
        for program in (f"{self}-restore", f"{self}-save"):
            if shutil.which(program) is None:
                raise _missing(program)

    def save(self) -> dict[str, SavedTable]:
        """Read all tables, by name. Raises KernelError, and UsageError if it is not installed.

        A table that iptables-nft-save does not print is read over netlink. The text of a rule that
        iptables does not know begins with UNREAD.
        """
        text = _run([f"{self}-save"], "")
        return parse(text) | self.omitted(text)

    def omitted(self, saved: str) -> dict[str, SavedTable]:
        """Read the tables that iptables-save omitted from its output. Raises KernelError."""
        names = _INCOMPATIBLE.findall(saved) if self.flavour is Flavour.NFT else []
        if not names:
            return {}
        with contextlib.closing(NftReader()) as reader:
            return {name: reader.save(self.family, name) for name in names}

    def save_counters(self, table: str) -> dict[str, list[CountedRule]]:
        """Read the rules of one table with their packets, by chain.

        Raises KernelError, and UsageError if it is not installed.
        """
        text = _run([f"{self}-save", "-c", "-t", table], "")
        if self.flavour is Flavour.NFT and table in _INCOMPATIBLE.findall(text):
            with contextlib.closing(NftReader()) as reader:
                return reader.counted(self.family, table)
        return parse_counters(text)

    def restore(self, lines: Sequence[str]) -> int:
        """Write the chains that are named, leave the others, and return the bytes written.

        Each table is one transaction. Raises KernelError, RestoreError.
        """
        text = "\n".join((*lines, ""))
        _run([f"{self}-restore", "--noflush", "--wait", _LOCK_SECONDS], text)
        return len(text)


ALL = tuple(Programs(family, flavour) for family in Family for flavour in Flavour)


def legacy_table_names(family: Family) -> list[str]:
    """Return the tables of iptables-legacy in this network namespace. Raises OSError."""
    try:
        return _LEGACY_TABLES[family].read_text().split()
    except FileNotFoundError:  # the kernel's module for these tables is not loaded
        return []


def has_legacy_tables(family: Family) -> bool:
    """Return whether this network namespace has tables of iptables-legacy, and shows them."""
    try:
        return bool(legacy_table_names(family))
    except OSError:
        return False


def detect_flavour() -> Flavour:
    """Return the flavour that the node's other programs use: kubelet's, or the one with more rules.

    Facts: iptables-wrapper of Kubernetes' images. It looks for chains that kubelet creates; a
    program that fails has no rules.
    """
    found = {flavour: _save_text(flavour) for flavour in (Flavour.NFT, Flavour.LEGACY)}
    for chain in _KUBELET_CHAINS:
        for flavour, text in found.items():
            if f"\n:{chain} " in text:
                return flavour
    # Each flavour counts rules of both families, as iptables-wrapper does.
    rules = {flavour: text.count("\n-A ") for flavour, text in found.items()}
    if rules[Flavour.LEGACY] > rules[Flavour.NFT]:
        return Flavour.LEGACY
    if shutil.which(f"{Programs(Family.IPV4, Flavour.NFT)}-restore") is None:
        return Flavour.LEGACY
    return Flavour.NFT


def _save_text(flavour: Flavour) -> str:
    """Return what iptables-save prints of both families, with the chains that it omits."""
    found = []
    for family in Family:
        programs = Programs(family, flavour)
        try:
            text = _run([f"{programs}-save"], "")
            found.append(text)
            for table in programs.omitted(text).values():
                for chain, rules in table.chains.items():
                    found += [f":{chain} ", *(f"-A {chain} {rule}" for rule in rules)]
        except (KernelError, UsageError):
            continue
    return "\n".join(found)


def _run(command: Sequence[str], text: str) -> str:
    try:
        # Bytes, because text mode would also end a line at a carriage return.
        done = subprocess.run(
            command, input=_encode(text), capture_output=True, check=False, env=_environment()
        )
    except FileNotFoundError as error:
        raise _missing(command[0]) from error
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error))
        # No descriptors for its pipes, or no process: it may pass.
        raise TransientKernelError(f"{name}: starting {command[0]}", error.errno or 0) from error
    if done.returncode == 0:
        return _decode(done.stdout)
    message = _decode(done.stderr)
    lacks = _missing_modules(command[0], message)
    words = f"{command[0]}: {lacks}{' '.join(message.split())[:500]}"
    # iptables-legacy reads and writes its tables through a raw socket, hence CAP_NET_RAW.
    if "ermission denied" in words or "not permitted" in words:
        raise PermissionKernelError(f"{words}: it needs CAP_NET_ADMIN and CAP_NET_RAW", 0)
    # iptables-nft-restore exits with 4 for a rule that the kernel refused, too, and names the line.
    by_name = not _TRANSIENT.isdisjoint(_REASON.findall(message))
    if by_name or (done.returncode == _RESOURCE_PROBLEM and "line" not in words):
        raise TransientKernelError(words, 0)
    faults = _faults(message, text.split("\n"), f"{command[0]}: {lacks}")
    raise RestoreError(next(iter(faults.values())) if len(faults) == 1 else words, faults)


def _faults(message: str, lines: Sequence[str], prefix: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for words in message.split("\n"):
        for number in map(int, _LINE.findall(words)):
            if 0 < number <= len(lines):
                line = lines[number - 1]
                found.setdefault(line, f"{prefix}{words.strip()[:500]} {line}".strip())
    return found


# Comments of other programs' rules may be any bytes, and a removal writes them back.
def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _environment() -> dict[str, str]:
    # The messages of the C library are compared, and must not be in the node's language.
    return os.environ | {"LC_ALL": "C"}


def _decode(output: bytes) -> str:
    return output.decode("utf-8", "surrogateescape")


def _missing_modules(program: str, message: str) -> str:
    """Return a text that names the modules which the kernel could not load; empty if it has all."""
    # All modules of extensions have such an alias: xt_comment is ipt_comment and ip6t_comment.
    prefix = "ip6t" if program.startswith("ip6") else "ipt"
    names = sorted({f"{prefix}_{name}" for name in _EXTENSION.findall(message)})
    return f"the kernel cannot load {', '.join(names)}: load them on the node: " if names else ""


def _missing(program: str) -> UsageError:
    return UsageError(f"{program} is not on PATH: install the package iptables")
