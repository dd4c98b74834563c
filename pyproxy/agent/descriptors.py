"""The limit of open files: as high as this process may have it.

The default of 1024 is for programs that use select(2). It is less than the health-check node ports
of a large cluster need. Facts: getrlimit(2).
"""

from __future__ import annotations

import logging
import resource

log = logging.getLogger(__name__)

_MOST = 1 << 20
"""As if the limit were no higher: nothing here needs more, and "unlimited" is not a number."""


def raise_limit() -> int:
    """Raise the soft limit of descriptors to the hard one; return the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return most
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError) as error:
        log.warning("cannot raise the limit of open files from %d to %d: %s", soft, most, error)
        return soft
    log.debug("raised the limit of open files from %d to %d", soft, most)
    return most
