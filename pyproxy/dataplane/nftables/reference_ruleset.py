"""What the fixed rules read like when nobody has touched them: loaded where they serve nobody.

The kernel adds to rules what it is not given, so the text that was loaded cannot be compared with
what is read back. A network namespace of its own, which is gone with the thread that made it, is a
place to load it and read that back; it takes CAP_SYS_ADMIN, which the agent does without.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import closing

from pyproxy.dataplane.nftables.layout import Layout, is_fixed, read_layout
from pyproxy.dataplane.nftables.loader import load
from pyproxy.dataplane.nftables.ruleset import Options
from pyproxy.errors import KernelError
from pyproxy.netlink.kernel_errors import kernel_error
from pyproxy.netlink.nfnetlink import Nfnetlink

_CLONE_NEWNET = 0x40000000


def pristine(options: Options) -> Layout:
    """Load the fixed rules beside the world, and read them back. Raises KernelError."""
    found: list[Layout] = []
    failures: list[KernelError] = []

    def visit() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(_CLONE_NEWNET):
                number = ctypes.get_errno()
                raise kernel_error(number, f"a network namespace: {os.strerror(number)}")
            with closing(Nfnetlink()) as netlink:
                load(netlink, options)
                found.append(read_layout(netlink))
        except KernelError as error:
            failures.append(error)

    thread = threading.Thread(target=visit, name="pristine")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return found[0]


def differences(held: Layout, wanted: Layout) -> Iterator[str]:
    """Name every fixed chain, rule and set that is not as it should be."""
    fixed = {name for name in held.chains if is_fixed(name)}
    ours = {name for name in wanted.chains if is_fixed(name)}
    for name in sorted(ours - fixed):
        yield f"add chain {name}"
    for name in sorted(fixed - ours):
        yield f"delete chain {name}"
    for name in sorted(fixed & ours):
        if held.chains[name] != wanted.chains[name]:
            yield f"replace chain {name}: its hook, priority or policy is another"
        yield from _rules(name, held.rules.get(name, []), wanted.rules.get(name, []))
    for name in sorted(wanted.sets.keys() - held.sets.keys()):
        yield f"add set {name}"
    for name in sorted(wanted.sets.keys() & held.sets.keys()):
        if held.sets[name] != wanted.sets[name]:
            yield f"replace set {name}: it is of another type"


def _rules(chain: str, held: list[bytes], wanted: list[bytes]) -> Iterator[str]:
    for number, rule in enumerate(wanted, 1):
        if rule not in held:
            yield f"add rule {number} of chain {chain}"
    for number, rule in enumerate(held, 1):
        if rule not in wanted:
            yield f"delete rule {number} of chain {chain}, as it is now"
