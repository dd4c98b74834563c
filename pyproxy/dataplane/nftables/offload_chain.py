"""The chains that put established connections to Services on the fast path.

The base chain is at the hook forward behind all usual filters, so that only packets that these
accepted get here. It takes connections that this table translated and that both sides have
confirmed, in the client's direction. All other packets leave at its only rule. Of these
connections, the second chain leaves out

- pods that reach themselves, whose packets are masqueraded and come back to the same device,
- endpoints that terminate,
- Services with session affinity, which are in none of its sets.

The chains are written over netlink: nft 1.0.6 does not parse the original destination port in a
concatenation.

Facts: nft_flow_offload_eval in net/netfilter/nft_flow_offload.c, which ends the rule for a
connection that it does not add: one on the fast path already, or of a protocol but TCP and UDP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

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
"""The name of the base chain, and of the flowtable."""

ADDING = "fast-path-add"
"""The chain that adds connections to the flowtable."""

CHAINS = (NAME, ADDING)

SLOW_PACKETS = 3
"""Packets of a connection, in both directions, that take the slow path before it is offloaded.

No rule counts them: it is what conntrack needs to regard the connection as assured. Of TCP they are
the handshake. Of UDP they are a packet, a response, and a packet at least 2 s after the first, so
that a DNS exchange is never offloaded. To wait for more makes short connections slower.
"""

_PRIORITY = 200
_FIRST = rules.REGISTER
_STATUS = rules.IPS_SEEN_REPLY | rules.IPS_ASSURED | rules.IPS_DST_NAT


def messages() -> Iterator[Message]:
    """Yield the messages that write the chains in place of the rules that they have."""
    yield rules.new_chain(TABLE, ADDING)
    yield rules.new_base_chain(TABLE, NAME, rules.HOOK_FORWARD, _PRIORITY)
    for name in CHAINS:
        yield rules.flush(TABLE, name)
        for expressions in _RULES[name]():
            yield rules.new_rule(TABLE, name, *expressions)


def removal() -> Iterator[Message]:
    """Yield the messages that delete the chains."""
    yield from (rules.flush(TABLE, name) for name in CHAINS)
    yield from (nftables.delete_chain(TABLE, name) for name in CHAINS)


def is_complete(hook: bytes, held: Mapping[str, Sequence[bytes]]) -> bool:
    """Return whether the base chain has this hook, and the chains exactly these rules."""
    return rules.is_base_chain(hook, rules.HOOK_FORWARD, _PRIORITY) and all(
        _has_rules(name, held.get(name, ())) for name in CHAINS
    )


def count_added(held: Mapping[str, Sequence[bytes]]) -> int:
    """Return the number of connections that the rules have put on the fast path."""
    return sum(rules.read_counted(rule) or 0 for rule in held.get(ADDING, ()))


def _has_rules(name: str, held: Sequence[bytes]) -> bool:
    wanted = [b"".join(expressions) for expressions in _RULES[name]()]
    return len(wanted) == len(held) and all(map(is_same_rule, wanted, held))


def _base_rules() -> Iterator[list[bytes]]:
    # One rule, because each packet of the slow path pays for it.
    yield [
        *rules.has_status(_FIRST, _STATUS),
        *rules.is_original(_FIRST),
        rules.jump(ADDING),
    ]


def _adding_rules() -> Iterator[list[bytes]]:
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


_RULES: Mapping[str, Callable[[], Iterator[list[bytes]]]] = {
    NAME: _base_rules,
    ADDING: _adding_rules,
}
