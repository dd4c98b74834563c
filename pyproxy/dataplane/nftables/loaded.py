"""Which options the kernel's table was loaded with, read from its rules."""

from __future__ import annotations

import struct
from itertools import product

import msgspec

from pyproxy.dataplane.nftables import chains, ruleset, schema
from pyproxy.dataplane.nftables.layout import Layout
from pyproxy.dataplane.nftables.ruleset import Options
from pyproxy.model.address import Family, Mark
from pyproxy.netlink.rules import read_bits_set, read_incoming_interface, read_set_names


def loaded_options(layout: Layout) -> Options | None:
    """Work the options out; None where the rules are of another version, or not ours.

    The chain that is named after a digest of the ruleset's text says whether they are right.
    """
    bits = read_bits_set(b"".join(layout.rules.get(chains.MARKING, [])))
    if len(bits) != 4:
        return None
    splits = {family: layout.rules.get(f"split{family.value}", []) for family in Family}
    interfaces = (read_incoming_interface(rule) for rules in splits.values() for rule in rules)
    read = Options(
        mark=Mark(struct.unpack("=I", bits)[0]),
        pod_interface=next(filter(None, interfaces), ""),
        pod_families=frozenset(
            family
            for family, rules in splits.items()
            if any(schema.PODS.of(family) in read_set_names(rule) for rule in rules)
        ),
    )
    # What the rules could tell with more reading, the digest tells as well.
    return next(
        (
            options
            for everything, shield, counters in product((False, True), repeat=3)
            if ruleset.marker(
                options := msgspec.structs.replace(
                    read,
                    masquerade_all=everything,
                    shield_loopback=shield,
                    endpoint_counters=counters,
                )
            )
            in layout.chains
        ),
        None,
    )
