"""The registry of proxy modes: a new dataplane adds its declaration here."""

from __future__ import annotations

from collections.abc import Mapping

from pyproxy.config.modes import ProxyMode
from pyproxy.dataplane.iptables.mode import MODE as IPTABLES
from pyproxy.dataplane.ipvs.mode import MODE as IPVS
from pyproxy.dataplane.mode import Mode
from pyproxy.dataplane.nftables.mode import MODE as NFTABLES

MODES: Mapping[ProxyMode, Mode] = {mode.proxy_mode: mode for mode in (NFTABLES, IPTABLES, IPVS)}


def of(proxy_mode: ProxyMode) -> Mode:
    """Return the declaration of a mode."""
    return MODES[proxy_mode]
