"""The proxy mode nftables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyproxy.config.modes import ProxyMode
from pyproxy.config.settings import FlowOffload, Settings
from pyproxy.dataplane.connections import ConnectionCounters
from pyproxy.dataplane.interface import Dataplane
from pyproxy.dataplane.mode import NF_TABLES, FailureNames, LocalAddresses, Mode
from pyproxy.dataplane.packets import PacketTracer

if TYPE_CHECKING:
    from pyproxy.dataplane.nftables.offload_devices import OffloadDevices
    from pyproxy.dataplane.nftables.plan import NftablesPlan


def _make(settings: Settings) -> Dataplane[NftablesPlan]:
    from pyproxy.dataplane.nftables.base_rules import NftablesOptions  # noqa: PLC0415
    from pyproxy.dataplane.nftables.dataplane import NftablesDataplane  # noqa: PLC0415

    return NftablesDataplane(
        NftablesOptions(
            settings.masquerade.mark,
            settings.masquerade.everything,
            settings.local_traffic.interfaces("*"),
            shield_loopback=settings.node_ports.serves_loopback,
            endpoint_counters=settings.nftables.endpoint_counters,
        ),
        offload=_offload(settings),
    )


def _offload(settings: Settings) -> OffloadDevices | None:
    wanted = settings.nftables
    if wanted.flow_offload is FlowOffload.NONE:
        return None
    from pyproxy.dataplane.nftables.offload_devices import (  # noqa: PLC0415
        DeviceChoice,
        OffloadDevices,
        must_bind_ends,
    )

    pods = settings.local_traffic.interfaces("*")
    return OffloadDevices(DeviceChoice(wanted.offload_interfaces, pods, must_bind_ends()))


def _tracer(_: Settings, local_addresses: LocalAddresses) -> PacketTracer:
    from pyproxy.dataplane.nftables.kernel_trace import KernelTracer  # noqa: PLC0415

    return KernelTracer(local_addresses)


def _counters(_: Settings) -> ConnectionCounters:
    from pyproxy.dataplane.nftables.counters import CounterReader  # noqa: PLC0415

    return CounterReader()


def _remove_leftovers(serving: Dataplane[Any] | None) -> Iterator[str]:
    from pyproxy.dataplane.nftables.schema import TABLE  # noqa: PLC0415
    from pyproxy.dataplane.own_tables import remove_table  # noqa: PLC0415

    if serving is None and remove_table(TABLE):
        yield f"nftables table inet {TABLE}"


MODE = Mode(
    proxy_mode=ProxyMode.NFTABLES,
    make=_make,
    tracer=_tracer,
    counters=_counters,
    remove_leftovers=_remove_leftovers,
    programs={"nft": "nftables"},
    kernel_parts=((NF_TABLES,),),
    failure_names=FailureNames("nftables_sync_failures", "nftables_cleanup_failures"),
)
