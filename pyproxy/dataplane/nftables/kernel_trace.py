"""The packet tracer over the kernel's elements, each read when the packet looks it up.

A trace looks up a dozen elements, so that its cost does not depend on the number of Services. Sets
of ranges have few elements and are read whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import product

from pyproxy.dataplane.nft.base_rules import Layout
from pyproxy.dataplane.nft.loaded_options import (
    confirmed,
    options_to_trace,
    read_traffic_options,
)
from pyproxy.dataplane.nft.loader import read_layout
from pyproxy.dataplane.nft.readback import kernel_rows
from pyproxy.dataplane.nftables import chains, offload_chain, schema
from pyproxy.dataplane.nftables.base_rules import NftablesOptions, base_rules
from pyproxy.dataplane.nftables.offload_devices import ends_of
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.dataplane.nftables.tracer import NftablesView, trace
from pyproxy.dataplane.packets import Packet, TraceResult
from pyproxy.model.address import Address, Family
from pyproxy.netlink import flowtables, nftables
from pyproxy.netlink.links import get_link, read_links
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.requests import Requests
from pyproxy.netlink.sockets import NETLINK_ROUTE

_ATTEMPTS = 5

_NO_FAST_PATH = "connections are not offloaded: pyproxy status says why"
_CHANGING = "the kernel state changed while it was read: steps may be of different moments"


def loaded_options(layout: Layout) -> NftablesOptions | None:
    """Return the options that the base rules were loaded with; None if of another version."""
    # The chains split4 and split6 test for pods with any of the other options.
    splits = [rule for family in Family for rule in layout.rules.get(f"split{family.value}", [])]
    found = read_traffic_options(layout.rules.get(chains.MARKING, []), splits)
    if found is None:
        return None
    # The digest identifies the other options: one of 8 possible texts has it, or none.
    candidates = (
        NftablesOptions(
            mark=found.mark,
            masquerade_all=masquerade_all,
            pod_interface=found.pod_interface,
            pod_families=found.pod_families,
            shield_loopback=shield,
            endpoint_counters=counters,
            offload=schema.OFFLOAD_SERVICES.of(Family.IPV4) in layout.sets,
        )
        for masquerade_all, shield, counters in product((False, True), repeat=3)
    )
    return confirmed(layout, candidates, base_rules)


class KernelTracer:
    """Traces packets through table `inet pyproxy` of the network namespace that it is made in.

    `local_addresses` returns the addresses of this node's interfaces.
    """

    def __init__(self, local_addresses: Callable[[], Iterable[Address]]) -> None:
        self._local_addresses = local_addresses
        self._netlink = Nfnetlink()

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def trace(self, packet: Packet) -> TraceResult:
        """Return the paths of a packet through the table. Raises KernelError, UsageError."""
        layout = read_layout(self._netlink, TABLE)
        options, remarks = options_to_trace(layout, TABLE, "nftables", loaded_options, base_rules)
        offloads = offload_chain.NAME in layout.chains
        if options.offload and not offloads:
            remarks = (*remarks, _NO_FAST_PATH)
        local = frozenset(self._local_addresses())
        for _ in range(_ATTEMPTS):
            before = self._generation()
            rows = kernel_rows(self._netlink, TABLE, schema.BY_NAME)
            found = trace(packet, NftablesView(rows, options, local, rows, offloads))
            # nf_tables increments its generation with each transaction of any program. Packets that
            # add affinities do not change it.
            if self._generation() == before:
                break
        else:
            remarks = (*remarks, _CHANGING)
        if any(path.offload and not path.offload.reason for path in found.paths):
            remarks = (*remarks, *self._unbound(packet.interface))
        return found.result(remarks)

    def _unbound(self, interface: str) -> Iterator[str]:
        """Yield a remark if the flowtable has neither an interface nor one at its ends."""
        replies = self._netlink.dump(flowtables.get_flowtables(TABLE))
        found = flowtables.read_flowtables(replies).get(offload_chain.NAME)
        with closing(Requests(NETLINK_ROUTE, "devices")) as requests:
            links = tuple(read_links(requests.dump(get_link(0))))
        ends = ends_of((link for link in links if link.name == interface), links)
        if found is None or found.devices.isdisjoint({interface, *(link.name for link in ends)}):
            yield (
                f"the flowtable does not have {interface}: packets that come in by it are not "
                "offloaded"
            )

    def _generation(self) -> int:
        return nftables.read_generation(self._netlink.get(nftables.get_generation()))
