"""Which packet tracer each proxy mode has."""

from __future__ import annotations

from pyproxy.agent.node_addresses import local_addresses
from pyproxy.config.modes import ProxyMode
from pyproxy.dataplane.iptables.kernel_trace import IptablesTracer
from pyproxy.dataplane.nftables.kernel_trace import KernelTracer
from pyproxy.dataplane.packets import PacketTracer
from pyproxy.errors import UsageError
from pyproxy.model.flavour import Flavour


def make(mode: ProxyMode, flavour: Flavour | None = None) -> PacketTracer:
    """Make the tracer of a mode, for the network namespace of the caller.

    `flavour` is iptables', None for the one whose tables have our rules. Raises UsageError for a
    mode that has no tracer, KernelError.
    """
    match mode:
        case ProxyMode.NFTABLES:
            return KernelTracer(local_addresses)
        case ProxyMode.IPTABLES:
            return IptablesTracer(local_addresses, flavour)
        case ProxyMode.IPVS:
            raise UsageError(
                "trace reads the rules of the modes nftables and iptables, and IPVS is tables of "
                "the kernel's own: ask pyproxy explain, or see what packets meet with trace --live"
            )
