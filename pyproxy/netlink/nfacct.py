"""nfacct objects: named counters that iptables rules increment, where the kernel has them.

Facts: include/uapi/linux/netfilter/nfnetlink_acct.h. An object that a rule names cannot be deleted.
"""

from __future__ import annotations

import errno
import logging
from contextlib import closing

from pyproxy.errors import KernelError, PermissionKernelError, StaleStateError, TransientKernelError
from pyproxy.netlink.attributes import attribute, attribute_map, string, text
from pyproxy.netlink.frames import NLM_F_CREATE, NLM_F_EXCL
from pyproxy.netlink.kernel_errors import MessageError
from pyproxy.netlink.nfnetlink import NFPROTO_UNSPEC, Message, Nfnetlink

log = logging.getLogger(__name__)

_SUBSYSTEM = 7
_NEW, _GET, _DEL = 0, 1, 3
_NAME, _PACKETS, _BYTES = 1, 2, 3


class PacketCounters:
    """Reads some objects of the network namespace that it was made in, one thread at a time."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._netlink = Nfnetlink()

    def read(self) -> dict[str, int]:
        """Return the packets of each object that exists. Blocks; logs errors at level debug."""
        try:
            found = _packets(self._netlink)
        except KernelError as error:
            log.debug("cannot read nfacct objects: %s", error)
            return {}
        return {name: found[name] for name in sorted(self._names & found.keys())}

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()


def list_counters(netlink: Nfnetlink) -> frozenset[str]:
    """Return the names of all objects. Raises KernelError, RejectedError without nfacct."""
    return frozenset(_packets(netlink))


def delete_counter(netlink: Nfnetlink, name: str) -> MessageError | None:
    """Delete an object; EBUSY while a rule names it, ENOENT if there is none."""
    return netlink.send(_message(_DEL, string(_NAME, name)))


def create_counters(names: frozenset[str]) -> frozenset[str]:
    """Create objects that count from 0, keep those that exist; return those that exist now.

    Empty if the kernel has no nfacct, or permits none. Raises KernelError for other errors, which
    may pass.
    """
    zero = bytes(8)
    with closing(Nfnetlink()) as netlink:
        try:
            for name in sorted(names):
                body = string(_NAME, name) + attribute(_PACKETS, zero) + attribute(_BYTES, zero)
                # EEXIST says that the object exists; without NLM_F_EXCL it would be EBUSY.
                error = netlink.send(_message(_NEW, body, NLM_F_CREATE | NLM_F_EXCL))
                if error and not isinstance(error.error, StaleStateError):
                    raise error.error
            return names & list_counters(netlink)
        except KernelError as error:
            # Without the module nfnetlink_acct the kernel refuses the subsystem with EINVAL.
            if error.errno != errno.EINVAL and not isinstance(error, PermissionKernelError):
                raise
            log.debug("cannot create nfacct objects, rules are written without them: %s", error)
            return frozenset()


def is_supported() -> bool:
    """Return whether `create_counters` would succeed; it creates nothing."""
    with closing(Nfnetlink()) as netlink:
        try:
            # Without the module nfnetlink_acct the kernel refuses the subsystem with EINVAL.
            list_counters(netlink)
        except KernelError as error:
            log.debug("cannot list nfacct objects: %s", error)
            return False
        return True


def delete_counters(names: frozenset[str]) -> None:
    """Delete those objects that no rule names any more."""
    with closing(Nfnetlink()) as netlink:
        try:
            for name in sorted(names & list_counters(netlink)):
                error = delete_counter(netlink, name)
                # The kernel frees the rules of a transaction some time after it: EBUSY till then.
                if error and not isinstance(error.error, StaleStateError | TransientKernelError):
                    raise error.error
        except KernelError as error:
            log.debug("cannot delete nfacct objects: %s", error)


def _packets(netlink: Nfnetlink) -> dict[str, int]:
    found = map(attribute_map, netlink.dump(_message(_GET)))
    return {text(each[_NAME]): int.from_bytes(each[_PACKETS], "big") for each in found}


def _message(kind: int, body: bytes = b"", flags: int = 0) -> Message:
    return Message(_SUBSYSTEM << 8 | kind, flags, body, NFPROTO_UNSPEC)
