"""Which virtual services are ours: IPVS itself does not know whose one is.

Those on the device of our addresses are, and those that the table lists: virtual services of node
ports have the node's addresses, which are not on the device.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyproxy.dataplane.ipvs import schema
from pyproxy.dataplane.ipvs.kernel import Addresses, Kernel, is_ours
from pyproxy.dataplane.ipvs.rows import virtual_of_key, virtuals_by_address
from pyproxy.dataplane.ipvs.schema import SERVERS, VIRTUALS, Table
from pyproxy.model.address import Address, Family, Network
from pyproxy.netlink.ipvs import Virtual
from pyproxy.policy.routing import ServiceRouting


def lost_virtuals(
    held: Table,
    here: Addresses,
    services: Iterable[ServiceRouting],
    exclude: tuple[Network, ...],
) -> frozenset[Virtual]:
    """Return virtual services that are ours although the table `held` does not list them.

    The table and the device get the addresses in the same commit. If our device has addresses
    and the table has none, it was deleted while no agent ran. Only virtual services on the
    node's own addresses need it, and those that Services want now are taken for ours.
    """
    has_table = any(
        held.get(kind.of(family)) for kind in (schema.ADDRESSES, schema.CLAIMS) for family in Family
    )
    if has_table or not (here.labelled and here.ours):
        return frozenset()
    return frozenset(
        virtual
        for routing in services
        for virtual in virtuals_by_address(routing)
        if not any(virtual.address in each for each in exclude)
    )


def read_virtuals(
    kernel: Kernel,
    held: Table,
    on_device: frozenset[Address],
    known: frozenset[Virtual],
    exclude: tuple[Network, ...],
) -> frozenset[Virtual]:
    """Add our virtual services to the table `held`; return those of other programs.

    `known` are ours too. Blocks for a dump. Raises KernelError.
    """
    listed = known | frozenset(
        virtual_of_key(key, family)
        for family in Family
        for kind in (schema.FRONTENDS, schema.CLAIMS)
        for key in held.get(kind.of(family), {})
    )
    everything = kernel.virtuals()
    found = {
        virtual: how
        for virtual, how in everything.items()
        if is_ours(virtual, on_device, listed, exclude)
    }
    held[VIRTUALS] = {**found}
    return frozenset(everything.keys() - found.keys())


def read_servers(kernel: Kernel, held: Table) -> None:
    """Add the servers of the virtual services of a table. Blocks for a dump of each."""
    held[SERVERS] = {
        (virtual, server.backend): schema.weight_of(server)
        for virtual in held[VIRTUALS]
        for server in kernel.servers(virtual)
    }
