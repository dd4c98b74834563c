"""The proxy mode ipvs. Facts: Documentation/networking/ipvs-sysctl.rst in the kernel's sources."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from pyproxy.config.modes import ProxyMode
from pyproxy.config.settings import Settings
from pyproxy.dataplane.connections import ConnectionCounters
from pyproxy.dataplane.interface import Dataplane
from pyproxy.dataplane.mode import NF_TABLES, KernelPart, KernelSetting, LocalAddresses, Mode
from pyproxy.dataplane.packets import PacketTracer
from pyproxy.takeover.leftovers import InService
from pyproxy.xtables.kube_names import DEVICE

if TYPE_CHECKING:
    from pyproxy.dataplane.ipvs.plan import IpvsPlan
    from pyproxy.netlink.ipvs import Virtual

_IP_VS = KernelPart("ip_vs", "proc/net/ip_vs")
_IPV4 = PurePath("proc/sys/net/ipv4")


def _make(settings: Settings) -> Dataplane[IpvsPlan]:
    from pyproxy.dataplane.ipvs.dataplane import IpvsDataplane  # noqa: PLC0415
    from pyproxy.dataplane.ipvs.ruleset import Options  # noqa: PLC0415
    from pyproxy.netlink.ipvs import Timeouts  # noqa: PLC0415

    given = settings.ipvs
    return IpvsDataplane(
        Options(
            settings.masquerade.mark,
            settings.masquerade.everything,
            settings.local_traffic.interfaces("*"),
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

    # The device alone identifies those whose address is on it.
    for each in kernel.find_node_port_services():
        yield Virtual(family_of(each.address), each.protocol, each.address, Port(each.port))


def _tracer(_: Settings, local_addresses: LocalAddresses) -> PacketTracer:
    from pyproxy.dataplane.ipvs.kernel_trace import IpvsTracer  # noqa: PLC0415

    return IpvsTracer(local_addresses)


def _counters(_: Settings) -> ConnectionCounters:
    from pyproxy.dataplane.ipvs.counters import IpvsCounters  # noqa: PLC0415

    return IpvsCounters()


def _in_service(_: Dataplane[Any]) -> InService:
    return InService(ipvs=True)


def _remove_leftovers(serving: Dataplane[Any] | None) -> Iterator[str]:
    from pyproxy.dataplane.ipvs.kernel import has_own_device  # noqa: PLC0415
    from pyproxy.dataplane.ipvs.schema import TABLE  # noqa: PLC0415
    from pyproxy.dataplane.own_tables import has_table  # noqa: PLC0415

    # Without both this mode never served, and asking IPVS would load its module.
    if serving is not None or not (has_table(TABLE) or has_own_device()):
        return
    from pyproxy.dataplane.ipvs.dataplane import IpvsDataplane  # noqa: PLC0415
    from pyproxy.dataplane.ipvs.ruleset import Options  # noqa: PLC0415

    with closing(IpvsDataplane(Options())) as dataplane:
        dataplane.cleanup()
    yield f"virtual services, network device {DEVICE}, and nftables table inet {TABLE}"


def _modules(settings: Settings) -> tuple[str, ...]:
    return ("nf_conntrack", "dummy", "ip_vs", f"ip_vs_{settings.ipvs.scheduler}")


def _vs(name: str) -> KernelSetting:
    return KernelSetting(_IPV4 / "vs" / name, 1, module="ip_vs")


def _kernel_settings(settings: Settings) -> tuple[KernelSetting, ...]:
    needed = [
        # Rules know the connections of IPVS, and postrouting can masquerade them.
        _vs("conntrack"),
        # A client that reuses a source port is a new connection to an endpoint that serves.
        # kube-proxy leaves it alone, because kernels from 5.9 on do this without a delay.
        _vs("conn_reuse_mode"),
        # A connection ends with its endpoint, so that the client need not wait for a timeout.
        _vs("expire_nodest_conn"),
        # Session affinity does not keep an endpoint of weight 0.
        _vs("expire_quiescent_template"),
        # IPVS forwards packets only if the node does.
        KernelSetting(_IPV4 / "ip_forward", 1),
    ]
    if settings.ipvs.strict_arp:
        # The device has service addresses that another machine may announce in ARP.
        needed += [
            KernelSetting(_IPV4 / "conf/all/arp_ignore", 1),
            KernelSetting(_IPV4 / "conf/all/arp_announce", 2),
        ]
    return tuple(needed)


MODE = Mode(
    proxy_mode=ProxyMode.IPVS,
    make=_make,
    tracer=_tracer,
    counters=_counters,
    remove_leftovers=_remove_leftovers,
    in_service=_in_service,
    programs={"nft": "nftables"},
    kernel_parts=((_IP_VS,), (NF_TABLES,)),
    modules=_modules,
    kernel_settings=_kernel_settings,
    device=DEVICE,
    translates_before_routing=False,
    owns_ipvs=True,
    divides_node_ports=True,
)
