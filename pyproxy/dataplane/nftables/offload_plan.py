"""Changes of the fast path as a value: its flowtable, its chain, and the flowtable's devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from pyproxy.dataplane.nftables import offload_chain
from pyproxy.dataplane.nftables.offload_chain import NAME
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.netlink import flowtables
from pyproxy.netlink.nfnetlink import Message

_PRIORITY = 0
"""That of the usual filters at ingress, which tc precedes."""


class OffloadPlan(msgspec.Struct, frozen=True):
    """Changes of the fast path: what to create or delete, and devices to bind and to release."""

    create_flowtable: bool = False
    replace_chain: bool = False
    write_chain: bool = False
    delete_chain: bool = False
    delete_flowtable: bool = False
    bind: tuple[str, ...] = ()
    release: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self != NOTHING

    def lines(self) -> Iterator[str]:
        """Yield the changes as nft commands."""
        at = f"inet {TABLE} {NAME}"
        chains = [f"inet {TABLE} {name}" for name in offload_chain.CHAINS]
        if self.delete_chain or self.replace_chain:
            yield from (f"delete chain {each}" for each in chains)
        if self.delete_flowtable:
            yield f"delete flowtable {at}"
        if self.create_flowtable:
            yield f"add flowtable {at} {{ hook ingress priority {_PRIORITY}; counter; }}"
        if self.write_chain:
            yield from (f"add chain {each}" for each in chains)
        for verb, devices in (("add", self.bind), ("delete", self.release)):
            if devices:
                yield f"{verb} flowtable {at} {{ devices = {{ {', '.join(devices)} }}; }}"

    def counts(self) -> Mapping[str, int]:
        """Count the objects to write by their kind."""
        return {
            "chain": len(offload_chain.CHAINS) * (self.write_chain or self.delete_chain),
            "flowtable": int(self.create_flowtable or self.delete_flowtable),
            "device": len(self.bind) + len(self.release),
        }

    def messages(self) -> Iterator[tuple[str, Message]]:
        """Yield the messages in order, each with the device that it concerns, or an empty name."""
        if self.delete_chain or self.replace_chain:
            yield from (("", each) for each in offload_chain.removal())
        if self.delete_flowtable:
            yield "", flowtables.delete_flowtable(TABLE, NAME)
        if self.create_flowtable:
            yield "", flowtables.new_flowtable(TABLE, NAME, _PRIORITY)
        if self.write_chain:
            yield from (("", each) for each in offload_chain.messages())
        for device in self.release:
            yield device, flowtables.delete_device(TABLE, NAME, _PRIORITY, device)
        for device in self.bind:
            yield device, flowtables.add_device(TABLE, NAME, _PRIORITY, device)

    def without(self, devices: frozenset[str]) -> OffloadPlan:
        """Return the plan without some of the devices."""
        return msgspec.structs.replace(
            self,
            bind=tuple(each for each in self.bind if each not in devices),
            release=tuple(each for each in self.release if each not in devices),
        )


NOTHING = OffloadPlan()


class Held(msgspec.Struct, frozen=True):
    """The fast path in the kernel: the flowtable's devices, None if there is no flowtable.

    `chain` is whether there is a chain of its name, and `complete` whether it has our rules.
    """

    devices: frozenset[str] | None = None
    chain: bool = False
    complete: bool = False


def plan_offload(held: Held, wanted: frozenset[str] | None) -> OffloadPlan:
    """Return the changes from what the kernel holds to these devices; None for no fast path."""
    if wanted is None:
        return OffloadPlan(delete_chain=held.chain, delete_flowtable=held.devices is not None)
    bound = held.devices or frozenset()
    return OffloadPlan(
        create_flowtable=held.devices is None,
        replace_chain=held.chain and not held.complete,
        write_chain=not held.complete,
        bind=tuple(sorted(wanted - bound)),
        release=tuple(sorted(bound - wanted)),
    )
