"""The proxy mode iptables, in both flavours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyproxy.config.modes import ProxyMode
from pyproxy.config.settings import Settings
from pyproxy.dataplane.connections import ConnectionCounters
from pyproxy.dataplane.interface import Dataplane
from pyproxy.dataplane.mode import NF_TABLES, Capability, KernelPart, LocalAddresses, Mode
from pyproxy.dataplane.packets import PacketTracer
from pyproxy.model.flavour import Flavour
from pyproxy.takeover.iptables import find_own_rules, has_legacy_rules
from pyproxy.takeover.leftovers import InService

if TYPE_CHECKING:
    from pyproxy.dataplane.iptables.plan import IptablesPlan

_IP_TABLES = KernelPart("ip_tables", "proc/net/ip_tables_names")


def _make(settings: Settings) -> Dataplane[IptablesPlan]:
    from pyproxy.dataplane.iptables.base_rules import IptablesOptions  # noqa: PLC0415
    from pyproxy.dataplane.iptables.dataplane import IptablesDataplane  # noqa: PLC0415

    return IptablesDataplane(
        IptablesOptions(
            settings.masquerade.mark,
            settings.masquerade.everything,
            # An interface that ends in + matches all that begin so.
            settings.local_traffic.interfaces("+"),
            settings.node_ports.serves_loopback,
            # A liberal conntrack regards TCP packets outside the window as valid: kube-proxy, too,
            # omits the rule then.
            drop_invalid=not settings.conntrack.tcp_be_liberal,
            all_local=settings.node_ports.everywhere_in,
        ),
        settings.iptables.flavour,
    )


def _tracer(settings: Settings, local_addresses: LocalAddresses) -> PacketTracer:
    from pyproxy.dataplane.iptables.kernel_trace import IptablesTracer  # noqa: PLC0415

    return IptablesTracer(local_addresses, settings.iptables.flavour)


def _counters(settings: Settings) -> ConnectionCounters:
    from pyproxy.dataplane.iptables.counters import IptablesCounters  # noqa: PLC0415

    return IptablesCounters(settings.iptables.flavour)


def _in_service(dataplane: Dataplane[Any]) -> InService:
    from pyproxy.dataplane.iptables.dataplane import IptablesDataplane  # noqa: PLC0415

    flavour = dataplane.flavour if isinstance(dataplane, IptablesDataplane) else None
    return InService(flavour=flavour)


def _remove_leftovers(serving: Dataplane[Any] | None) -> Iterator[str]:
    # The other flavour's rules are leftovers even while this mode serves.
    found = find_own_rules(_in_service(serving) if serving is not None else InService())
    failures = found.unread
    if found:
        from pyproxy.takeover import kernel  # noqa: PLC0415

        failures += kernel.remove(found)
    if removed := found.without(failures):
        yield str(removed)
    for failure in failures:
        raise failure.error


def _modules(settings: Settings) -> tuple[str, ...]:
    if settings.iptables.flavour is Flavour.LEGACY:
        return ("ip_tables", "ip6_tables")
    return ()


def _capabilities_to_remove() -> frozenset[Capability]:
    return frozenset({Capability.NET_RAW}) if has_legacy_rules() else frozenset()


MODE = Mode(
    proxy_mode=ProxyMode.IPTABLES,
    make=_make,
    tracer=_tracer,
    counters=_counters,
    remove_leftovers=_remove_leftovers,
    in_service=_in_service,
    # Without ip6tables, IPv6 is not served.
    programs={"iptables-restore": "iptables"},
    # The flavour nft writes the same rules to nf_tables.
    kernel_parts=((_IP_TABLES, NF_TABLES),),
    modules=_modules,
    owns_iptables=True,
    serves_local_networks=True,
    # iptables-legacy reads and writes through a raw socket.
    capabilities=frozenset({Capability.NET_RAW}),
    capabilities_to_remove=_capabilities_to_remove,
)
