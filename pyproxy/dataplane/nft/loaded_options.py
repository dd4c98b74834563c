"""The options that a table's base rules were loaded with, read from the kernel alone."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from pyproxy.dataplane.nft.base_rules import BaseRules, Layout, TrafficOptions
from pyproxy.dataplane.nft.schema import PODS
from pyproxy.errors import UsageError
from pyproxy.model.address import Family, Mark
from pyproxy.netlink.rules import read_bits_set, read_incoming_interface, read_set_names

T = TypeVar("T", bound=TrafficOptions)


def read_traffic_options(
    marking: Sequence[bytes], matching: Sequence[bytes]
) -> TrafficOptions | None:
    """Return the mark of the rules `marking`, and how the rules `matching` recognize pods.

    `masquerade_all` is not in them. None if the rules set no mark, as in another version's table.
    """
    # nft compiles `meta mark | bit` to a bitwise expression, whose operand is the bit.
    bits = read_bits_set(b"".join(marking))
    if len(bits) != 4:
        return None
    looked_up = frozenset[str]().union(*map(read_set_names, matching))
    return TrafficOptions(
        mark=Mark(struct.unpack("=I", bits)[0]),
        pod_interface=next(filter(None, map(read_incoming_interface, matching)), ""),
        pod_families=frozenset(family for family in Family if PODS.of(family) in looked_up),
    )


def confirmed(
    layout: Layout, candidates: Iterable[T], base_rules: Callable[[T], BaseRules]
) -> T | None:
    """Return the candidate whose rules the table has, None for another version's rules.

    The marker chain's name is a digest of the rules' text, which confirms the options.
    """
    return next(
        (each for each in candidates if base_rules(each).marker() in layout.chains),
        None,
    )


def missing_table(table: str, mode: str, command: str) -> UsageError:
    """Return the error of a command that found no table."""
    return UsageError(
        f"the kernel holds no table inet {table}: run {command} on a node where pyproxy serves in "
        f"{mode} mode, in the host's network namespace"
    )


def options_to_trace(
    layout: Layout,
    table: str,
    mode: str,
    read: Callable[[Layout], T | None],
    base_rules: Callable[[T], BaseRules],
) -> tuple[T, tuple[str, ...]]:
    """Return the options that `read` finds, and a remark if the rules have changed since.

    Raises UsageError if there is no table, or one of another version.
    """
    if not layout.chains:
        raise missing_table(table, mode, "trace")
    options = read(layout)
    if options is None:
        raise UsageError(
            f"table inet {table} was loaded by another version of pyproxy: use that version's "
            "trace, or start this version's agent"
        )
    if base_rules(options).is_loaded(layout):
        return options, ()
    changed = (
        f"another program has changed the base rules of table inet {table}: the trace follows the "
        "rules that pyproxy loaded"
    )
    return options, (changed,)
