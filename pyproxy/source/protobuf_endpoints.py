"""Convert the endpoints of a slice in protobuf into those of the model.

Each field of a parsed message is a call from Python, and a cluster has a hundred thousand
endpoints. Nearly all have the form in which Go writes those of a controller: one address, three
conditions, the reference to a pod, and then the node, the zone and hints. The reference is not
used, and what follows it is equal for many endpoints, so this module reads the two sizes and looks
the rest up. Any other endpoint is decoded by `protobuf_objects` and converted by `slices`, with the
same result.

Facts: the field numbers of `protobuf_schema`. Protobuf merges the fields of a message in any order.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

from pyproxy.model import objects as model
from pyproxy.model.address import Family
from pyproxy.source import slices
from pyproxy.source.fields import FieldProblems
from pyproxy.source.protobuf_objects import ENDPOINT, endpoint, parse, varint

# The first bytes of fields: the number and the wire type of bytes with their length.
_ADDRESSES, _REFERENCE, _NODE_NAME, _ZONE = (number << 3 | 2 for number in (1, 4, 6, 7))

_CONDITIONS = {
    b"\x12\x06\x08%c\x10%c\x18%c" % values: tuple(map(bool, values))
    for values in product((0, 1), repeat=3)
}
"""ready, serving and terminating by the bytes of a field that has all three."""

_CONDITIONS_SIZE = len(next(iter(_CONDITIONS)))

_LONGEST_ADDRESS = 2 + 128
"""Bytes of the field; its size has two bytes from there on."""

_LONGEST_REST = 256
_MOST_RESTS = 16_384
"""Nodes of a cluster, about, each in its zone. Hints name the zones of a node's own in most."""


class _Rest(NamedTuple):
    """The fields of an endpoint after the reference."""

    node: str
    zone: str
    zones: tuple[str, ...]
    nodes: tuple[str, ...]


_known_rests: dict[bytes, _Rest] = {}


def endpoints(
    entries: Iterable[bytes], family: Family, problems: FieldProblems
) -> tuple[model.Endpoint, ...]:
    """Return the endpoints of a slice, as `slices.endpoints`. Raises msgspec.DecodeError."""
    found: list[model.Endpoint] = []
    number, unusual = slices.address_form(family)
    pack, conditions_of, rests = slices.pack, _CONDITIONS.get, _known_rests
    for i, data in enumerate(entries):
        rest = b""
        try:
            end = 2 + data[1]
            at = end + _CONDITIONS_SIZE
            conditions = conditions_of(data[end:at])
            if conditions is not None and data[0] == _ADDRESSES and end < _LONGEST_ADDRESS:
                if data[at] == _REFERENCE:
                    size = data[at + 1]
                    at += 2
                    if size > 127:
                        size, at = varint(data, at - 1)
                    at += size
                rest = data[at:]
                known = rests.get(rest)
                if known is not None:
                    packed = pack(number, data[2:end].decode())
                    if packed[0] not in unusual:
                        ready, serving, terminating = conditions
                        node, zone, zones, nodes = known
                        found.append(
                            model.Endpoint(
                                packed, ready, serving, terminating, node, zone, zones, nodes
                            )
                        )
                        continue
        except (IndexError, OSError, ValueError):
            rest = b""
        found += slices.endpoints([endpoint(data)], family, problems, i)
        _learn(rest)
    return tuple(found)


def _learn(rest: bytes) -> None:
    """Remember what the last fields of a valid endpoint mean."""
    if not 0 < len(rest) <= _LONGEST_REST or rest[0] not in {_NODE_NAME, _ZONE}:
        return
    fields = parse(ENDPOINT, rest)
    # An address or conditions here would be merged with those before.
    if fields.addresses or fields.HasField("conditions"):
        return
    entry = endpoint(rest)
    names, hints = slices.valid_names(entry), entry.hints
    if names is None:
        return
    if len(_known_rests) >= _MOST_RESTS:
        _known_rests.clear()
    zones, nodes = (hints.for_zones, hints.for_nodes) if hints else (None, None)
    _known_rests[rest] = _Rest(*names, slices.shared_hints(zones), slices.shared_hints(nodes))
