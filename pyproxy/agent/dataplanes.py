"""Which dataplane serves each proxy mode, and what it is told of the settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyproxy import takeover
from pyproxy.agent import loopback
from pyproxy.agent.restores import Restores
from pyproxy.config.settings import LocalMode, ProxyMode, Settings
from pyproxy.dataplane.interface import Dataplane
from pyproxy.dataplane.iptables.dataplane import IptablesDataplane
from pyproxy.dataplane.iptables.fixed import Options as IptablesOptions
from pyproxy.dataplane.ipvs.dataplane import IpvsDataplane
from pyproxy.dataplane.ipvs.ruleset import Options as IpvsOptions
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.dataplane.nftables.ruleset import Options
from pyproxy.metrics import Metrics
from pyproxy.model.address import Port, family_of
from pyproxy.netlink.ipvs import Virtual
from pyproxy.takeover import InService


def make(settings: Settings) -> Dataplane[Any]:
    """Make the dataplane of `settings.mode`. Raises UsageError where it cannot be on this machine.

    Which kind of plan it takes is its own affair, for nobody mixes those of two.
    """
    match settings.mode:
        case ProxyMode.NFTABLES:
            return NftablesDataplane(options(settings))
        case ProxyMode.IPVS:
            adopts = _left_by_kube_proxy if settings.takeover else tuple
            return IpvsDataplane(ipvs_options(settings), adopts=adopts)
        case ProxyMode.IPTABLES:
            return IptablesDataplane(iptables_options(settings), settings.iptables.flavour)


def _left_by_kube_proxy() -> Iterator[Virtual]:
    # Those on the device kube-ipvs0 are told by that alone.
    for each in takeover.find_node_port_services():
        yield Virtual(family_of(each.address), each.protocol, each.address, Port(each.port))


def metrics(dataplane: Dataplane[Any]) -> Metrics:
    """Make the metrics of an agent that has this dataplane."""
    made = Metrics()
    if isinstance(dataplane, IptablesDataplane):
        made.tell_also(Restores(dataplane))
    return made


def stays(dataplane: Dataplane[Any]) -> InService:
    """Say what this dataplane serves with, which must stay where other things go."""
    if isinstance(dataplane, IptablesDataplane):
        return InService(flavour=dataplane.flavour)
    return InService(
        nftables=isinstance(dataplane, NftablesDataplane), ipvs=isinstance(dataplane, IpvsDataplane)
    )


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


def iptables_options(settings: Settings) -> IptablesOptions:
    """Say what the rules of iptables depend on."""
    shared = options(settings)
    return IptablesOptions(
        shared.mark,
        shared.masquerade_all,
        shared.pod_interface.replace("*", "+"),
        shared.shield_loopback,
        drop_invalid=not settings.conntrack.tcp_be_liberal,
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
