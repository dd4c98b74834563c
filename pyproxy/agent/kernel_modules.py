"""Kernel modules that a mode needs and that the kernel does not load by itself.

nf_tables, conntrack and most of the rest come when they are first asked for. iptables-legacy's
ip_tables does not, and the sysctls of IPVS are not there before ip_vs is. Loading takes
CAP_SYS_MODULE and /lib/modules: `--init-only` has both, and where an agent has not, what it lacks
is told by whoever needs it.
"""

from __future__ import annotations

import logging
import subprocess

from pyproxy.config.modes import ProxyMode
from pyproxy.config.settings import Settings
from pyproxy.model.flavour import Flavour

log = logging.getLogger(__name__)


def needed(settings: Settings) -> tuple[str, ...]:
    """Name the modules of the mode; nothing says that the kernel has them as modules."""
    match settings.mode:
        case ProxyMode.IPTABLES if settings.iptables.flavour is Flavour.LEGACY:
            return ("ip_tables", "ip6_tables")
        case ProxyMode.IPVS:
            return ("nf_conntrack", "dummy", "ip_vs", f"ip_vs_{settings.ipvs.scheduler}")
    return ()


def load(settings: Settings) -> None:
    """Load them as far as that is possible; those that are built in, or loaded, are."""
    names = needed(settings)
    if not names:
        return
    try:
        done = subprocess.run(
            ["modprobe", "--all", "--quiet", *names], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        log.debug("modprobe is not on PATH: the kernel must have %s already", ", ".join(names))
        return
    if done.returncode:
        log.debug("not all of %s could be loaded: %s", ", ".join(names), done.stderr.strip())
