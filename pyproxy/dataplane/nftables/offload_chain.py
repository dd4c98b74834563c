"""The chain that puts established connections to Services on the fast path.

It is at the hook forward behind all usual filters, so that only packets that these accepted get
here. It takes connections that this table translated and that both sides have confirmed, in the
client's direction. Three kinds are left out:

- Connections of few packets. A short request or a DNS exchange ends before it would gain anything.
- Pods that reach themselves. Their packets are masqueraded and come back to the same device.
- Endpoints that terminate, and Services with session affinity, which are not in the sets.

The chain is written over netlink: nft 1.0.6 does not parse the original destination port in a
concatenation.

Facts: nft_flow_offload_eval in net/netfilter/nft_flow_offload.c, which ends the rule for a
connection that it does not add: one on the fast path already, or of a protocol but TCP and UDP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pyproxy.dataplane.nft import schema as nft
from pyproxy.dataplane.nftables import schema
from pyproxy.dataplane.nftables.packet_fields import (
    DADDR_OFFSET,
    ORIGINAL_DADDR,
    SADDR_OFFSET,
    is_of,
    load_address,
    original_frontend,
    words,
)
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.model.address import Family
from pyproxy.netlink import nftables, rules
from pyproxy.netlink.nfnetlink import Message
from pyproxy.netlink.rule_comparison import is_same_rule

NAME = "fast-path"
"""The name of the chain, and of the flowtable."""

MOST_SLOW_PACKETS = 16
"""Packets of a connection, in both directions, before it is offloaded.

A TCP connection with one short request has about 11, a DNS exchange 2 to 4.
"""

_PRIORITY = 200
_FIRST = rules.REGISTER
_STATUS = rules.IPS_SEEN_REPLY | rules.IPS_ASSURED | rules.IPS_DST_NAT


def messages() -> Iterator[Message]:
    """Yield the messages that write the chain in place of the rules that it has."""
    yield rules.new_base_chain(TABLE, NAME, rules.HOOK_FORWARD, _PRIORITY)
    yield rules.flush(TABLE, NAME)
    for expressions in _rules():
        yield rules.new_rule(TABLE, NAME, *expressions)


def removal() -> Iterator[Message]:
    """Yield the messages that delete the chain."""
    yield rules.flush(TABLE, NAME)
    yield nftables.delete_chain(TABLE, NAME)


def is_complete(hook: bytes, held: Sequence[bytes]) -> bool:
    """Return whether a chain, as it was read back, has this hook and exactly these rules."""
    wanted = [b"".join(expressions) for expressions in _rules()]
    is_in_place = rules.is_base_chain(hook, rules.HOOK_FORWARD, _PRIORITY)
    return is_in_place and len(wanted) == len(held) and all(map(is_same_rule, wanted, held))


def count_added(held: Sequence[bytes]) -> int:
    """Return the number of connections that the rules have put on the fast path."""
    return sum(rules.read_counted(rule) or 0 for rule in held)


def _rules() -> Iterator[list[bytes]]:
    # Most packets on the slow path are of other connections, and leave at the first rule.
    yield [*rules.lacks_status(_FIRST, _STATUS), rules.return_()]
    yield [*rules.is_reply(_FIRST), rules.return_()]
    yield [*rules.has_packets_up_to(_FIRST, MOST_SLOW_PACKETS), rules.return_()]
    for family in Family:
        yield [
            *is_of(family),
            load_address(family, SADDR_OFFSET, _FIRST),
            load_address(family, DADDR_OFFSET, _FIRST + words(family)),
            rules.is_in(nft.HAIRPIN.of(family), _FIRST),
            rules.return_(),
        ]
        # The counter comes last: it counts what was added.
        add = [rules.flow_add(NAME), rules.counter()]
        frontend = [*is_of(family), *original_frontend(family, _FIRST)]
        endpoint = _endpoint(family, _FIRST + words(family) + 2)
        draining = rules.is_in(schema.DRAINING_ENDPOINTS.of(family), _FIRST)
        yield [*frontend, *endpoint, draining, rules.return_()]
        yield [*frontend, rules.is_in(schema.OFFLOAD_SERVICES.of(family), _FIRST), *add]
        node_port = [
            *is_of(family),
            rules.load_original(ORIGINAL_DADDR[family], _FIRST),
            rules.is_in(schema.NODE_PORT_ADDRESSES.of(family), _FIRST),
            rules.load_meta(rules.META_L4PROTO, _FIRST),
            rules.load_original(rules.CT_PROTO_DST, _FIRST + 1),
        ]
        endpoint = _endpoint(family, _FIRST + 2)
        draining = rules.is_in(schema.NODE_PORT_DRAINING_ENDPOINTS.of(family), _FIRST)
        yield [*node_port, *endpoint, draining, rules.return_()]
        yield [*node_port, rules.is_in(schema.OFFLOAD_NODE_PORTS.of(family), _FIRST), *add]


def _endpoint(family: Family, register: int) -> list[bytes]:
    # The headers have the endpoint since the translation.
    return [
        load_address(family, DADDR_OFFSET, register),
        rules.load_payload(rules.TRANSPORT_HEADER, 2, 2, register + words(family)),
    ]
