"""Kernel modules that a mode needs and that the kernel does not load by itself.

The kernel loads nf_tables, conntrack and most others at their first use. It does not load
ip_tables for iptables-legacy, and IPVS has no sysctls before ip_vs is loaded. Loading needs
CAP_SYS_MODULE and /lib/modules: `--init-only` has both. Without them, the code that needs a module
reports that it is missing.
"""

from __future__ import annotations

import logging
import subprocess

from pyproxy.config.settings import Settings
from pyproxy.dataplane import modes

log = logging.getLogger(__name__)


def load(settings: Settings) -> None:
    """Load the mode's modules as far as possible; blocks for modprobe, and is idempotent."""
    names = modes.of(settings.mode).modules(settings)
    if not names:
        return
    try:
        done = subprocess.run(
            ["modprobe", "--all", "--quiet", *names], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        log.debug("cannot load kernel modules %s: modprobe is not on PATH", ", ".join(names))
        return
    if done.returncode:
        log.debug("cannot load all kernel modules %s: %s", ", ".join(names), done.stderr.strip())
