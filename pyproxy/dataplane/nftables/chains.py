"""The chains that verdicts lead to, added when a frontend first needs one of its kind.

A frontend's verdict names a chain by the *class* of its number of endpoints: the power of two that
they fit in. The chain picks a random slot, and picks again if that slot is empty. After the last
try it picks among the lower half of the slots, which are always full. An endpoint that is added or
removed within a class is therefore one element of one map, and no verdict changes. That matters
because a changed verdict makes the kernel walk all verdict maps in search of loops.

Session affinity is learned after the translation, where client, frontend and endpoint are all
known: in postrouting, and in input for endpoints on the node itself. It is looked up before the
pick. Only the frontend's present endpoints are learned: a client without a response sends its first
packet again, and conntrack translates it to the same endpoint long after that was removed. The
timeout is that of the chain that learns, which bounds the entries of each frontend (`share_of`).

A node port has chains of its own kind (NODE), which look protocol and port up without the packet's
destination. So a node port has one slot for each endpoint, whatever the number of the node's
addresses. Its affinities are learned for each address, and its share is that of all of them.

All chains are written over netlink because nft 1.0.6 lists them but cannot parse some of their
rules. It does not add a rule that looks an address up in an
existing map, and does not parse the original destination port in a concatenation.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache

from pyproxy.dataplane.nft.base_rules import Layout
from pyproxy.dataplane.nftables import schema
from pyproxy.dataplane.nftables.packet_fields import (
    DADDR_OFFSET,
    NFPROTO,
    ORIGINAL_DADDR,
    SADDR_OFFSET,
    is_of,
    load_address,
    original_frontend,
    words,
)
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.model.address import Family
from pyproxy.netlink import rules
from pyproxy.netlink.nfnetlink import Message
from pyproxy.netlink.rule_comparison import is_same_rule

TRIES = 8
"""Random picks before the lower half. More than half of a class's slots are full, so endpoints of
the lower half get less than 2**-8 more than their share."""

_STEPS = (
    (20, 1),
    (60, 5),
    (120, 10),
    (300, 20),
    (600, 60),
    (1_800, 120),
    (3_600, 300),
    (7_200, 600),
    (21_600, 1_800),
    (86_400, 3_600),
)
"""The longest timeout of each range, and the step to which timeouts in it are rounded up."""

_SHARES = ((8, 4_096), (128, 256), (2_048, 16))
"""The most frontends of a Service, and the share of each."""

_REFILL = 2
"""The shares that a frontend gets anew within each timeout."""

_FRESH = 8
"""The part of a timeout after which a new connection restarts it. Connections before that cost the
frontend nothing of its share, so that one busy client does not use it up."""

_REFUSED_MS = 60_000

LOCAL_OFFSET = 1 << 24
"""The slot number of a frontend's first local endpoint, above those of the whole cluster."""

CLUSTER, LOCAL = "cluster", "local"

NODE = "node-"
"""The prefix of the chains of node ports."""

MARKING = "mark-masquerade"
"""The base chain that marks a packet. Only base rules contain the mark, so that the rules that set
it and those that test it change together."""

_MASQUERADED = "masq-"
_AFFINITY = "affinity-"
_LEARN = "learn"
_HOOKS = {"learn-postrouting": rules.HOOK_POSTROUTING, "learn-input": rules.HOOK_INPUT}
_PICKS = re.compile(rf"({_MASQUERADED})?({_AFFINITY})?({NODE})?({CLUSTER}|{LOCAL})([46])-(\d+)")
_LEARNS = re.compile(rf"{_LEARN}([46])-({NODE})?(\d+)-(\d+)")
# Older versions had one chain for each timeout.
_OLD = re.compile(rf"{_LEARN}[46]-\d+")
_FILTER = 0
"""The priority of learning: before srcnat, so that the client's address is not masqueraded yet."""

_FIRST = rules.REGISTER


def picking(
    which: str,
    family: Family,
    size: int,
    *,
    masquerade: bool = False,
    affinity: bool = False,
    node: bool = False,
) -> str:
    """Return the name of the chain that picks one of CLUSTER's or LOCAL's endpoints.

    `size` is their class. With `masquerade` the chain marks the packet first, and with `affinity`
    it looks up the client's learned endpoint first. With `node` it serves node ports.
    """
    prefix = _MASQUERADED * masquerade + _AFFINITY * affinity + NODE * node
    return f"{prefix}{which}{int(family)}-{size}"


@lru_cache(1024)
def drawn_slots(name: str) -> tuple[int, int] | None:
    """Return the first slot that a chain draws, and its number of slots; None for other chains."""
    found = _PICKS.fullmatch(name)
    # Another program may have made chains of any number.
    if found is None or int(found[6]) > LOCAL_OFFSET:
        return None
    return LOCAL_OFFSET if found[4] == LOCAL else 0, int(found[6])


def endpoint_class(count: int) -> int:
    """Return the power of two that `count` endpoints fit in; `count` is at least 1."""
    return 1 << (count - 1).bit_length()


def moduli(size: int) -> list[int]:
    """Return the draws of a class in their order: random slots below each of these numbers.

    The last draw is slot 0, which every frontend has. It serves a packet that read its verdict just
    before a commit that left the frontend fewer endpoints than the lower half of the class.
    """
    # A class of 1 or 2 has no empty slot, so one draw is enough.
    if size <= 2:
        return list(range(size, 0, -1))
    return [size] * TRIES + [size // 2, 1]


@lru_cache(1024)
def learning(family: Family, timeout: int, share: int, *, node: bool = False) -> str:
    """Return the name of the chain that learns clients, `timeout` being in seconds.

    `share` is the number of clients that a frontend may learn at once. With `node` the chain is for
    node ports.
    """
    return f"{_LEARN}{int(family)}-{NODE * node}{timeout_class(timeout)}-{share}"


def for_node_port(name: str) -> str:
    """Return the chain of `learning` for node ports, given the one for other frontends."""
    head, _, rest = name.partition("-")
    return f"{head}-{NODE}{rest}"


def timeout_class(timeout: int) -> int:
    """Round a timeout up, by a quarter at most, so that there are few chains; in seconds.

    Otherwise a tenant could make the agent write a chain for each of 86400 timeouts.
    """
    step = next(step for limit, step in _STEPS if timeout <= limit)
    return -(-timeout // step) * step


def share_of(frontends: int) -> int:
    """Return the number of clients that each frontend of a Service may learn at once.

    Twice as many may follow within each timeout. A restart of an entry's timeout counts as well, so
    that a frontend has 3.25 times its share of entries at most, with an entry's life of 9/8 of the
    timeout. `frontends` are those of one family. A Service with up to 32,768 frontends therefore
    has at most 106,496 entries, two fifths of the map.
    """
    return next((share for most, share in _SHARES if frontends <= most), 1)


def timeout_of(name: str) -> int:
    """Return the timeout of a chain that learns clients, in seconds; 0 for any other name."""
    found = _LEARNS.fullmatch(name)
    return int(found[3]) if found else 0


def is_learning(name: str) -> bool:
    """Return whether a chain is one of `learning`."""
    return name.startswith(_LEARN) and name not in _HOOKS


def is_on_demand(name: str) -> bool:
    """Return whether a chain is one of this module's, by its name."""
    return _is_current(name) or bool(_OLD.fullmatch(name))


def _is_current(name: str) -> bool:
    return name in _HOOKS or bool(_PICKS.fullmatch(name) or _LEARNS.fullmatch(name))


def needed(names: Iterable[str]) -> list[str]:
    """Return these chains and all that they lead to, each after those that it leads to."""
    # The kernel resolves a chain's name when it reads the message, so targets come first. A dict
    # keeps that order.
    found: dict[str, None] = {}
    for name in names:
        if name.startswith(_LEARN):
            found.update(dict.fromkeys(_HOOKS))
            found[name] = None
            continue
        unmasked = name.removeprefix(_MASQUERADED)
        found.update(dict.fromkeys((unmasked.removeprefix(_AFFINITY), unmasked, name)))
    return list(found)


def chain(name: str) -> Iterator[Message]:
    """Yield the messages that write one chain, in place of the rules that it has."""
    # Adding a chain that exists is no error: its rules are replaced, and verdicts to it stay.
    if name in _HOOKS:
        yield rules.new_base_chain(TABLE, name, _HOOKS[name], _FILTER)
    else:
        yield rules.new_chain(TABLE, name)
    yield rules.flush(TABLE, name)
    for expressions in _rules(name):
        yield rules.new_rule(TABLE, name, *expressions)


def complete_chains(layout: Layout) -> set[str]:
    """Return the names of the on-demand chains that have exactly their rules."""
    return {
        name
        for name in layout.chains
        if _is_current(name) and _is_complete(name, layout.rules.get(name, []))
    }


def _is_complete(name: str, held: Sequence[bytes]) -> bool:
    wanted = [b"".join(expressions) for expressions in _rules(name)]
    return len(wanted) == len(held) and all(map(is_same_rule, wanted, held))


@cache
def fingerprint() -> str:
    """Return a digest of one chain of each kind: another version's may have other rules."""
    picks = (
        picking(which, family, 4, masquerade=True, affinity=True, node=node)
        for node in (False, True)
        for which in (CLUSTER, LOCAL)
        for family in Family
    )
    learns = (learning(family, 1, 1, node=node) for node in (False, True) for family in Family)
    names = needed([*picks, *learns])
    digest = hashlib.sha256()
    for name in names:
        for message in chain(name):
            digest.update(message.body)
    return digest.hexdigest()[:12]


def _rules(name: str) -> Iterator[list[bytes]]:
    if name in _HOOKS:
        # The verdict is a goto, so at most one frontend learns a connection.
        yield from (_dispatch_learning(family, node) for node in (False, True) for family in Family)
        return
    if learns := _LEARNS.fullmatch(name):
        node = bool(learns[2])
        yield from _learn(Family(int(learns[1])), int(learns[3]), int(learns[4]), node)
        return
    picks = _PICKS.fullmatch(name)
    assert picks is not None  # noqa: S101 (no other chain is on demand)
    node, family = bool(picks[3]), Family(int(picks[5]))
    if name.startswith(_MASQUERADED):
        # A jump and not a goto, because the packet has to come back to be translated.
        yield [rules.jump(MARKING)]
        yield [rules.go_to(name.removeprefix(_MASQUERADED))]
    elif name.startswith(_AFFINITY):
        yield _return_to(family)
        yield [rules.go_to(name.removeprefix(_AFFINITY))]
    else:
        # A rule whose lookup finds no element ends there, and the next rule draws again.
        offset = LOCAL_OFFSET if picks[4] == LOCAL else 0
        for modulus in moduli(int(picks[6])):
            yield _pick(family, modulus, offset, node)


def _pick(family: Family, modulus: int, offset: int, node: bool) -> list[bytes]:
    # The fields of a concatenated key are in adjacent 4-byte registers: address, protocol, port.
    index = _FIRST + words(family) * (not node) + 2
    return [
        *(_node_port(family, _FIRST) if node else _frontend(family, _FIRST)),
        rules.random_number(modulus, offset, index),
        *_translate(family, (schema.NODE_PORT_ENDPOINTS if node else schema.ENDPOINTS).of(family)),
    ]


def _return_to(family: Family) -> list[bytes]:
    return [
        *_frontend(family, _FIRST + words(family)),
        load_address(family, SADDR_OFFSET, _FIRST),
        *_translate(family, schema.AFFINITY.of(family)),
    ]


def _node_port(family: Family, register: int) -> list[bytes]:
    return [
        *is_of(family),
        rules.load_meta(rules.META_L4PROTO, register),
        rules.load_payload(rules.TRANSPORT_HEADER, 2, 2, register + 1),
    ]


def _frontend(family: Family, register: int) -> list[bytes]:
    return [
        *is_of(family),
        load_address(family, DADDR_OFFSET, register),
        # A field shorter than 4 bytes leaves zeros behind it, as in the keys that pyproxy packs.
        rules.load_meta(rules.META_L4PROTO, register + words(family)),
        rules.load_payload(rules.TRANSPORT_HEADER, 2, 2, register + words(family) + 1),
    ]


def _translate(family: Family, map_name: str) -> list[bytes]:
    return [
        rules.look_up(map_name, _FIRST, _FIRST),
        rules.dnat(NFPROTO[family], _FIRST, _FIRST + words(family)),
    ]


def _dispatch_learning(family: Family, node: bool) -> list[bytes]:
    # Later packets need no lookup, and each update would restart the timeout.
    first = [*is_of(family), *rules.is_new(_FIRST)]
    if not node:
        frontends = schema.AFFINITY_FRONTENDS.of(family)
        return [
            *first,
            *original_frontend(family, _FIRST),
            rules.look_up_verdict(frontends, _FIRST),
        ]
    return [
        *first,
        rules.load_original(ORIGINAL_DADDR[family], _FIRST),
        rules.is_in(schema.NODE_PORT_ADDRESSES.of(family), _FIRST),
        rules.load_meta(rules.META_L4PROTO, _FIRST),
        rules.load_original(rules.CT_PROTO_DST, _FIRST + 1),
        rules.look_up_verdict(schema.NODE_PORT_AFFINITY.of(family), _FIRST),
    ]


def _learn(family: Family, timeout: int, share: int, node: bool) -> Iterator[list[bytes]]:
    # Client, frontend and endpoint are adjacent: AFFINITY's key is the first two, and that of
    # AFFINITY_ENDPOINTS the last two. With IPv6 they fill 15 of the 16 registers.
    frontend = _FIRST + words(family)
    # A node port's keys lack the address, which comes first.
    place = frontend + words(family) * node
    endpoints = schema.NODE_PORT_AFFINITY_ENDPOINTS if node else schema.AFFINITY_ENDPOINTS
    limits = schema.NODE_PORT_AFFINITY_LIMITS if node else schema.AFFINITY_LIMITS
    endpoint = frontend + words(family) + 2
    # Multiples of 20 ms are whole jiffies, which a dump then returns as they were sent.
    fresh = timeout * 1_000 // _FRESH // 20 * 20
    client = load_address(family, SADDR_OFFSET, _FIRST)
    # The headers have the endpoint since the translation, and only conntrack has the frontend.
    ends = [
        *is_of(family),
        *original_frontend(family, frontend),
        load_address(family, DADDR_OFFSET, endpoint),
        rules.load_payload(rules.TRANSPORT_HEADER, 2, 2, endpoint + words(family)),
        # Not learned if the frontend no longer has this endpoint: conntrack may still send there.
        rules.is_in(endpoints.of(family), place),
    ]
    yield [
        *is_of(family),
        client,
        *original_frontend(family, frontend),
        rules.is_in(schema.AFFINITY_FRESH.of(family), _FIRST),
        rules.return_(),
    ]
    yield [
        *ends,
        # The timeout is in the key because an element keeps the rate that it was added with.
        rules.load_number(timeout, endpoint),
        rules.update_limited(
            limits.of(family),
            place,
            timeout * 1_000,
            _REFILL * share * 86_400 // timeout,
            share,
        ),
        client,
        load_address(family, DADDR_OFFSET, endpoint),
        # An affinity lasts at least for the timeout after the last use, fresh or not.
        rules.update(schema.AFFINITY.of(family), _FIRST, endpoint, timeout * 1_000 + fresh),
        rules.update_set(schema.AFFINITY_FRESH.of(family), _FIRST, fresh),
        rules.return_(),
    ]
    # The share is used up, or the map is full.
    yield [*ends, rules.update_counted(schema.AFFINITY_REFUSED.of(family), frontend, _REFUSED_MS)]
