"""Which dataplane serves each proxy mode, and what it is told of the settings.

A mode is imported when it is asked for: a command that asks about one does not wait for the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyproxy.agent import loopback
from pyproxy.config.modes import ProxyMode
from pyproxy.config.settings import LocalMode, Settings
from pyproxy.dataplane.interface import Dataplane

if TYPE_CHECKING:
    from pyproxy.dataplane.iptables.dataplane import IptablesDataplane
    from pyproxy.dataplane.iptables.plan import IptablesPlan
    from pyproxy.dataplane.ipvs.dataplane import IpvsDataplane
    from pyproxy.dataplane.ipvs.plan import IpvsPlan
    from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
    from pyproxy.dataplane.nftables.plan import NftablesPlan
    from pyproxy.netlink.ipvs import Virtual

    # mypy checks every dataplane against the whole contract here.
    _NFTABLES: type[Dataplane[NftablesPlan]] = NftablesDataplane
    _IPTABLES: type[Dataplane[IptablesPlan]] = IptablesDataplane
    _IPVS: type[Dataplane[IpvsPlan]] = IpvsDataplane


def make(settings: Settings) -> Dataplane[Any]:
    """Make the dataplane of `settings.mode`. Raises UsageError where it cannot be on this machine.

    Which kind of plan it takes is its own affair, for nobody mixes those of two.
    """
    match settings.mode:
        case ProxyMode.NFTABLES:
            return _nftables(settings)
        case ProxyMode.IPVS:
            return _ipvs(settings)
        case ProxyMode.IPTABLES:
            return _iptables(settings)


def _nftables(settings: Settings) -> Dataplane[Any]:
    from pyproxy.dataplane.nftables.base_rules import NftablesOptions  # noqa: PLC0415
    from pyproxy.dataplane.nftables.dataplane import NftablesDataplane  # noqa: PLC0415

    return NftablesDataplane(
        NftablesOptions(
            settings.masquerade.mark,
            settings.masquerade.everything,
            _pod_interface(settings, "*"),
            shield_loopback=loopback.is_asked_for(settings.node_ports),
            endpoint_counters=settings.endpoint_counters,
        )
    )


def _iptables(settings: Settings) -> Dataplane[Any]:
    from pyproxy.dataplane.iptables.dataplane import IptablesDataplane  # noqa: PLC0415
    from pyproxy.dataplane.iptables.fixed import Options  # noqa: PLC0415

    return IptablesDataplane(
        Options(
            settings.masquerade.mark,
            settings.masquerade.everything,
            _pod_interface(settings, "+"),
            loopback.is_asked_for(settings.node_ports),
            drop_invalid=not settings.conntrack.tcp_be_liberal,
        ),
        settings.iptables.flavour,
    )


def _ipvs(settings: Settings) -> Dataplane[Any]:
    from pyproxy.dataplane.ipvs.dataplane import IpvsDataplane  # noqa: PLC0415
    from pyproxy.dataplane.ipvs.ruleset import Options  # noqa: PLC0415
    from pyproxy.netlink.ipvs import Timeouts  # noqa: PLC0415

    given = settings.ipvs
    return IpvsDataplane(
        Options(
            settings.masquerade.mark,
            settings.masquerade.everything,
            _pod_interface(settings, "*"),
            scheduler=given.scheduler,
            exclude_networks=given.exclude_networks,
        ),
        adopts=_left_by_kube_proxy if settings.takeover else tuple,
        timeouts=Timeouts(
            int(given.tcp_timeout), int(given.tcp_fin_timeout), int(given.udp_timeout)
        ),
    )


def _left_by_kube_proxy() -> Iterator[Virtual]:
    from pyproxy.model.address import Port, family_of  # noqa: PLC0415
    from pyproxy.netlink.ipvs import Virtual  # noqa: PLC0415
    from pyproxy.takeover import kernel  # noqa: PLC0415

    # Those on the device kube-ipvs0 are told by that alone.
    for each in kernel.find_node_port_services():
        yield Virtual(family_of(each.address), each.protocol, each.address, Port(each.port))


def _pod_interface(settings: Settings, wildcard: str) -> str:
    """Name the interfaces that pods are behind; empty where their addresses tell."""
    traffic = settings.local_traffic
    if traffic.mode is LocalMode.BRIDGE_INTERFACE:
        return traffic.bridge_interface
    if traffic.mode is LocalMode.INTERFACE_NAME_PREFIX:
        return f"{traffic.interface_name_prefix}{wildcard}"
    return ""
