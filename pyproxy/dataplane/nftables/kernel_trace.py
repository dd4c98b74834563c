"""The packet tracer over the kernel's elements, each read when the packet looks it up.

A trace looks up a dozen elements, so that its cost does not depend on the number of Services. Sets
of ranges have few elements and are read whole.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from itertools import product

import msgspec

from pyproxy.dataplane.nft import schema as nft
from pyproxy.dataplane.nft.base_rules import Layout
from pyproxy.dataplane.nft.loader import read_layout
from pyproxy.dataplane.nft.readback import kernel_rows
from pyproxy.dataplane.nftables import chains, schema
from pyproxy.dataplane.nftables.base_rules import NftablesOptions, base_rules
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.dataplane.nftables.tracer import NftablesView, trace
from pyproxy.dataplane.packets import Packet, TraceResult
from pyproxy.errors import UsageError
from pyproxy.model.address import Address, Family, Mark
from pyproxy.netlink import nftables
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.rules import read_bits_set, read_incoming_interface, read_set_names

_ATTEMPTS = 5

_CHANGED = (
    "another program has changed the base rules: this trace follows the rules that pyproxy loaded"
)
_CHANGING = "the kernel state changed while it was read: steps may be of different moments"


def loaded_options(layout: Layout) -> NftablesOptions | None:
    """Return the options that the base rules were loaded with; None if of another version.

    Options are read from rules where that is easy. The marker chain, a digest of the text, confirms
    them.
    """
    bits = read_bits_set(b"".join(layout.rules.get(chains.MARKING, [])))
    # A mark has 4 bytes; none are found in a table without our chain.
    if len(bits) != 4:
        return None
    # The chains split4 and split6 test for pods with any of the other options.
    splits = {family: layout.rules.get(f"split{family.value}", []) for family in Family}
    interfaces = (read_incoming_interface(rule) for rules in splits.values() for rule in rules)
    read = NftablesOptions(
        mark=Mark(struct.unpack("=I", bits)[0]),
        pod_interface=next(filter(None, interfaces), ""),
        pod_families=frozenset(
            family
            for family, rules in splits.items()
            if any(nft.PODS.of(family) in read_set_names(rule) for rule in rules)
        ),
    )
    # The digest identifies the other options: one of 8 possible texts has it, or none.
    return next(
        (
            options
            for masquerade_all, shield, counters in product((False, True), repeat=3)
            if base_rules(
                options := msgspec.structs.replace(
                    read,
                    masquerade_all=masquerade_all,
                    shield_loopback=shield,
                    endpoint_counters=counters,
                )
            ).marker()
            in layout.chains
        ),
        None,
    )


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
        options, remarks = self._options()
        local = frozenset(self._local_addresses())
        for _ in range(_ATTEMPTS):
            before = self._generation()
            rows = kernel_rows(self._netlink, TABLE, schema.BY_NAME)
            found = trace(packet, NftablesView(rows, options, local, rows))
            # nf_tables increments its generation with each transaction of any program. Packets that
            # add affinities do not change it.
            if self._generation() == before:
                return found.result(remarks)
        return found.result((*remarks, _CHANGING))

    def _generation(self) -> int:
        return nftables.read_generation(self._netlink.get(nftables.get_generation()))

    def _options(self) -> tuple[NftablesOptions, tuple[str, ...]]:
        layout = read_layout(self._netlink, TABLE)
        if not layout.chains:
            raise UsageError(
                f"the kernel holds no table inet {TABLE}: run trace on a node where pyproxy serves "
                "in nftables mode, in the host's network namespace"
            )
        options = loaded_options(layout)
        if options is None:
            raise UsageError(
                f"table inet {TABLE} was loaded by another version of pyproxy: use that version's "
                "trace, or start this version's agent"
            )
        return options, () if base_rules(options).is_loaded(layout) else (_CHANGED,)
