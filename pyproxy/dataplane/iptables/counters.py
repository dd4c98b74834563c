"""The counters of nfacct that rules count into, where the kernel has them."""

from __future__ import annotations

import logging

from pyproxy.dataplane.iptables import names
from pyproxy.errors import KernelError, OutOfStepError, TransientKernelError
from pyproxy.netlink.accounting import create_counter, delete_counter, read_counters
from pyproxy.netlink.nfnetlink import Nfnetlink

log = logging.getLogger(__name__)

_NAMES = (names.INVALID_DROPPED, names.LOCALHOST_ACCEPTED)


def create() -> frozenset[str]:
    """Create them, and name those that there are."""
    netlink = Nfnetlink()
    try:
        for name in _NAMES:
            refusal = create_counter(netlink, name)
            if refusal and not isinstance(refusal.error, OutOfStepError):
                raise refusal.error
        return frozenset(_NAMES) & read_counters(netlink)
    except KernelError as error:
        log.debug("rules count into no counters, for the kernel has no nfacct: %s", error)
        return frozenset()
    finally:
        netlink.close()


def available() -> frozenset[str]:
    """Name those that `create` would leave here; none is created."""
    netlink = Nfnetlink()
    try:
        read_counters(netlink)
    except KernelError as error:
        log.debug("the kernel has no nfacct: %s", error)
        return frozenset()
    else:
        return frozenset(_NAMES)
    finally:
        netlink.close()


def delete() -> None:
    """Delete those that no rule counts into."""
    netlink = Nfnetlink()
    try:
        for name in read_counters(netlink) & frozenset(_NAMES):
            refusal = delete_counter(netlink, name)
            if refusal and not isinstance(refusal.error, OutOfStepError | TransientKernelError):
                raise refusal.error
    except KernelError as error:
        log.debug("counters of nfacct are left as they are: %s", error)
    finally:
        netlink.close()
