"""Which dataplane serves each proxy mode, and what it is told of the settings."""

from __future__ import annotations

from typing import Any

from pyproxy.agent import loopback
from pyproxy.config.settings import LocalMode, ProxyMode, Settings
from pyproxy.dataplane.interface import Dataplane
from pyproxy.dataplane.ipvs.dataplane import IpvsDataplane
from pyproxy.dataplane.ipvs.ruleset import Options as IpvsOptions
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.dataplane.nftables.ruleset import Options
from pyproxy.errors import UsageError


def make(settings: Settings) -> Dataplane[Any]:
    """Make the dataplane of `settings.mode`. Raises UsageError where it cannot be on this machine.

    Which kind of plan it takes is its own affair, for nobody mixes those of two.
    """
    match settings.mode:
        case ProxyMode.NFTABLES:
            return NftablesDataplane(options(settings))
        case ProxyMode.IPVS:
            return IpvsDataplane(ipvs_options(settings))
        case ProxyMode.IPTABLES as mode:
            raise UsageError(f"--proxy-mode: {mode.value} is not in this version yet: use nftables")


def options(settings: Settings) -> Options:
    """Say what the fixed rules depend on."""
    traffic = settings.local_traffic
    interface = ""
    if traffic.mode is LocalMode.BRIDGE_INTERFACE:
        interface = traffic.bridge_interface
    elif traffic.mode is LocalMode.INTERFACE_NAME_PREFIX:
        interface = f"{traffic.interface_name_prefix}*"
    return Options(
        settings.masquerade.mark,
        settings.masquerade.everything,
        interface,
        shield_loopback=loopback.is_asked_for(settings.node_ports),
        endpoint_counters=settings.endpoint_counters,
    )


def ipvs_options(settings: Settings) -> IpvsOptions:
    """Say what IPVS and the rules around it depend on."""
    shared = options(settings)
    return IpvsOptions(
        shared.mark,
        shared.masquerade_all,
        shared.pod_interface,
        scheduler=settings.ipvs.scheduler,
        exclude_networks=settings.ipvs.exclude_networks,
    )
