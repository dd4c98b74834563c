"""The expressions of nf_tables' rules, each as a function over registers.

Facts: net/netfilter/nft_*.c, and the attributes of enum nft_<expression>_attributes. An expression
that compares ends the rule, or leaves a doubt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from pyproxy.hostnet.firewall import metadata, xt_matches, xt_targets
from pyproxy.hostnet.firewall.bits import (
    Bits,
    DoubtKind,
    below,
    doubt,
    is_between,
    is_equal,
    known,
    mask_and_xor,
    number,
    unknown,
)
from pyproxy.hostnet.firewall.changes import OTHER_ZONE, foreign_source, short_lived
from pyproxy.hostnet.firewall.hook_packet import ANY_PROCESS
from pyproxy.hostnet.firewall.machine import (
    VERDICT_REGISTER,
    Attributes,
    Machine,
    data_of,
    number_of,
    read_verdict,
)
from pyproxy.hostnet.firewall.sets import SetElement, candidates
from pyproxy.hostnet.firewall.verdicts import ACCEPT, Action, Verdict
from pyproxy.model.address import Address, Family, address_text
from pyproxy.netlink.attributes import attribute_map, attributes, text

_ZONE = 17
_DELETE = 2
_FULL = doubt(DoubtKind.RATE, "whether a set is full")


def _negate(result: bool | None, negated: bool) -> bool | None:
    return result if result is None else result != negated


def _compare(machine: Machine, fields: Attributes) -> None:
    data = data_of(fields, 3)
    value = machine.registers.load(number_of(fields, 1), len(data))
    other, top = int.from_bytes(data, "big"), (1 << 8 * len(data)) - 1
    operator = number_of(fields, 2)
    if operator in (0, 1):
        result = _negate(is_equal(value, other), operator == 1)
    else:
        low, high = {
            2: (0, other - 1),
            3: (0, other),
            4: (other + 1, top),
            5: (other, top),
        }.get(operator, (0, top))
        result = is_between(value, low, high) if low <= high else False
    machine.require(result, value.doubts)


def _range(machine: Machine, fields: Attributes) -> None:
    low, high = data_of(fields, 3), data_of(fields, 4)
    value = machine.registers.load(number_of(fields, 1), len(low))
    result = is_between(value, int.from_bytes(low, "big"), int.from_bytes(high, "big"))
    machine.require(_negate(result, number_of(fields, 2) == 1), value.doubts)


def _bitwise(machine: Machine, fields: Attributes) -> None:
    size, operation = number_of(fields, 3), number_of(fields, 6)
    value = machine.registers.load(number_of(fields, 1), size)
    if operation == 0:
        mask, xor = (int.from_bytes(data_of(fields, kind), "big") for kind in (4, 5))
        found = mask_and_xor(value, mask, xor)
    else:
        found = unknown(size, doubt(DoubtKind.UNREADABLE, "a bit operation"))
        if operation in (1, 2) and value.complete and size == 4:
            # Shifts are of numbers in host order.
            shift = int.from_bytes(data_of(fields, 7), "little")
            before = int.from_bytes(value.data(), "little")
            after = before << shift if operation == 1 else before >> shift
            found = number(after & 0xFFFFFFFF)
    machine.store(fields, 2, found)


def _byteorder(machine: Machine, fields: Attributes) -> None:
    length, size = number_of(fields, 4), number_of(fields, 5)
    value = machine.registers.load(number_of(fields, 1), length)
    if value.complete and size:
        data = value.data()
        swapped = b"".join(data[i : i + size][::-1] for i in range(0, length, size))
        value = known(swapped)
    else:
        value = unknown(length, value.doubts)
    machine.store(fields, 2, value)


def _immediate(machine: Machine, fields: Attributes) -> None:
    data = attribute_map(fields.get(2, b""))
    if number_of(fields, 1) != VERDICT_REGISTER:
        machine.store(fields, 1, known(bytes(data.get(1, b""))))
    elif (verdict := read_verdict(data.get(2))) is not None:
        machine.verdicts.append(verdict)


def _payload(machine: Machine, fields: Attributes) -> None:
    base, offset, size = (number_of(fields, kind) for kind in (2, 3, 4))
    if 5 in fields:
        _write_payload(machine, base, offset, machine.registers.load(number_of(fields, 5), size))
        return
    packet = machine.packet
    if base == 1:
        value = packet.network_header(offset, size)
    elif base == 2:
        value = packet.transport_header(offset, size)
    else:
        value = unknown(size, doubt(DoubtKind.UNREADABLE, "the link header"))
        if base == 0 and offset == 12 and size == 2:
            value = metadata.meta(1, packet) or value
    machine.store(fields, 1, value)


def _write_payload(machine: Machine, base: int, offset: int, value: Bits) -> None:
    is_ipv4 = machine.packet.family is Family.IPV4
    source, destination, lifetime = (12, 16, 8) if is_ipv4 else (8, 24, 7)
    if base == 1 and offset == destination and value.complete:
        address = Address(value.data())
        machine.verdicts.append(
            Verdict(Action.TRANSLATE, note=f"to {address_text(address)}, without conntrack")
        )
    elif base == 1 and offset == source:
        machine.changes = "on with another source address, without conntrack"
    elif base == 1 and offset == lifetime:
        _set_ttl(machine, value.part(0, 1))
    elif base == 2 and offset == 2 and value.complete:
        port = int.from_bytes(value.data()[:2], "big")
        machine.verdicts.append(
            Verdict(Action.TRANSLATE, note=f"to port {port}, without conntrack")
        )
    elif base == 2 and offset == 0:
        machine.changes = "on with another source port, without conntrack"


def _set_ttl(machine: Machine, ttl: Bits) -> None:
    machine.packet = replace(machine.packet, ttl=ttl)
    machine.changes = short_lived(ttl)


def _meta(machine: Machine, fields: Attributes) -> None:
    key = number_of(fields, 2)
    if 3 not in fields:
        machine.store(fields, 1, metadata.meta(key, machine.packet))
    elif key == 3:
        mark = machine.registers.load(number_of(fields, 3), 4)
        machine.packet = replace(machine.packet, mark=mark)


def _conntrack(machine: Machine, fields: Attributes) -> None:
    key = number_of(fields, 2)
    packet = machine.packet
    if 4 not in fields:
        direction = fields[3][0] if fields.get(3) else None
        machine.store(fields, 1, metadata.conntrack(key, direction, packet))
    elif key == 3 and packet.connection:
        mark = machine.registers.load(number_of(fields, 4), 4)
        machine.packet = replace(packet, connection=replace(packet.connection, mark=mark))
    elif key == _ZONE and packet.connection is None:
        zone = machine.registers.load(number_of(fields, 4), 2)
        if zone.high:
            machine.changes = OTHER_ZONE


def _fib(machine: Machine, fields: Attributes) -> None:
    found = metadata.fib(number_of(fields, 2), number_of(fields, 3), machine.packet)
    machine.store(fields, 1, found)


def _lookup(machine: Machine, fields: Attributes) -> None:
    name = text(memoryview(fields[1]))
    inverted = bool(number_of(fields, 5) & 1)
    shape = machine.sets.set_shape(name)
    key = machine.registers.load(number_of(fields, 2), shape.length)
    if key.complete:
        element = machine.sets.element(name, key.data())
        if element and shape.has_expressions:
            machine.doubt(doubt(DoubtKind.RATE, f"the limits of set {name}"))
            return
        _use(machine, fields, [element] if element else [], inverted)
        return
    elements = machine.sets.elements(name)
    if elements is None:
        machine.doubt(key.doubts)
        if 3 in fields:
            machine.doubt(doubt(DoubtKind.UNREADABLE, f"map {name}"))
        return
    possible = candidates(elements, shape, key)
    if possible:
        machine.doubt(key.doubts)
    if possible and 3 not in fields:
        return
    _use(machine, fields, possible, inverted)


def _use(
    machine: Machine, fields: Attributes, elements: Sequence[SetElement], inverted: bool
) -> None:
    """Continue with the elements of a set or map that a key is in, or may be in."""
    if 3 not in fields:
        machine.require(bool(elements) != inverted, ())
    elif not elements:
        machine.broken = True
    elif number_of(fields, 3) == VERDICT_REGISTER:
        verdicts = (read_verdict(attribute_map(each.data).get(2)) for each in elements)
        machine.verdicts += list(dict.fromkeys(filter(None, verdicts)))
    elif len(elements) == 1:
        machine.store(fields, 3, known(bytes(attribute_map(elements[0].data).get(1, b""))))
    else:
        machine.store(fields, 3, unknown(16, machine.doubts))


def _limit(machine: Machine, fields: Attributes) -> None:
    _rate(machine, bool(number_of(fields, 5) & 1), "a rate limit")


def _connection_limit(machine: Machine, fields: Attributes) -> None:
    _rate(machine, bool(number_of(fields, 2) & 1), "a limit of connections")


def _quota(machine: Machine, fields: Attributes) -> None:
    _rate(machine, bool(number_of(fields, 2) & 1), "a quota")


def _rate(machine: Machine, over: bool, what: str) -> None:
    # "over" rates match in excess only; both leave the doubt.
    del over
    machine.doubt(doubt(DoubtKind.RATE, what))


def _numgen(machine: Machine, fields: Attributes) -> None:
    limit = number_of(fields, 2) + number_of(fields, 4)
    machine.store(fields, 1, below(limit, doubt(DoubtKind.CHANCE, "a random number")))


def _hash(machine: Machine, fields: Attributes) -> None:
    limit = number_of(fields, 4) + number_of(fields, 6)
    machine.store(fields, 2, below(limit, doubt(DoubtKind.CHANCE, "a hash")))


def _unknown_value(what: str, kind: int) -> Callable[[Machine, Attributes], None]:
    def run(machine: Machine, fields: Attributes) -> None:
        if kind in fields:
            machine.store(fields, kind, unknown(16, doubt(DoubtKind.UNREADABLE, what)))

    return run


def _socket(machine: Machine, fields: Attributes) -> None:
    # Only packets of this node's processes have a socket that rules find.
    process = machine.packet.from_process
    machine.store(fields, 2, unknown(16, ANY_PROCESS) if process else None)


def _no_match(machine: Machine, _: Attributes) -> None:
    machine.broken = True


def _dynset(machine: Machine, fields: Attributes) -> None:
    """Add or update an element, which matches but for its limits, and but for a full set."""
    packed = [fields[7]] if 7 in fields else [item for _, item in attributes(fields.get(10, b""))]
    names = {text(attribute_map(each).get(1, memoryview(b""))) for each in packed}
    if names & {"limit", "connlimit", "quota"}:
        machine.doubt(doubt(DoubtKind.RATE, "a rate limit"))
    elif names - {"counter", "last"}:
        machine.doubt(doubt(DoubtKind.UNREADABLE, "a set's expression"))
    inverted = bool(number_of(fields, 9) & 1)
    if number_of(fields, 3) != _DELETE:
        machine.require(_negate(_has_room(machine, fields), inverted), _FULL)


def _has_room(machine: Machine, fields: Attributes) -> bool | None:
    """Return whether a set has an element or takes it; None if it may be full."""
    name = text(memoryview(fields[1]))
    shape = machine.sets.set_shape(name)
    if not shape.size:
        return True
    elements = machine.sets.elements(name)
    if elements is not None and len(elements) < shape.size:
        return True
    key = machine.registers.load(number_of(fields, 4), shape.length)
    if key.complete and machine.sets.element(name, key.data()):
        return True
    # Elements beyond their timeout are removed later.
    return False if elements is not None and not shape.has_timeouts and key.complete else None


def _nothing(_machine: Machine, _fields: Attributes) -> None:
    """Do nothing: the expression only counts, logs or changes what no rule tests."""


def _notrack(machine: Machine, _: Attributes) -> None:
    # The kernel ignores it once conntrack has seen the packet.
    machine.untracked = machine.packet.connection is None


def _object(machine: Machine, fields: Attributes) -> None:
    # 1 counter, 2 quota, 3 ct helper, 4 limit, 5 connlimit, 7 ct timeout, 8 secmark, 10 synproxy.
    if 4 in fields:
        machine.doubt(doubt(DoubtKind.UNREADABLE, "a map of objects"))
    elif number_of(fields, 1) in (2, 4, 5):
        machine.doubt(doubt(DoubtKind.RATE, "a limit or quota object"))
    elif number_of(fields, 1) == 10:
        machine.verdicts.append(Verdict(Action.DIVERT, note="synproxy"))


def _reject(machine: Machine, _: Attributes) -> None:
    machine.verdicts.append(Verdict(Action.REJECT))


def _nat(machine: Machine, fields: Attributes) -> None:
    # NFT_NAT_SNAT is 0, NFT_NAT_DNAT 1.
    size = 4 if number_of(fields, 2) == 2 else 16
    address = machine.registers.load(number_of(fields, 3), size) if 3 in fields else None
    if number_of(fields, 1) != 1:
        if address is not None and address.complete:
            machine.changes = foreign_source(Address(address.data()), machine.packet)
        _masquerade(machine, fields)
        return
    target = ""
    if address is not None:
        target = address_text(Address(address.data())) if address.complete else "another address"
    machine.verdicts.append(Verdict(Action.TRANSLATE, note=f"to {target}" if target else ""))


def _redirect(machine: Machine, _: Attributes) -> None:
    machine.verdicts.append(Verdict(Action.TRANSLATE, note="to this node"))


def _masquerade(machine: Machine, _: Attributes) -> None:
    machine.packet = machine.packet.with_source_translated()
    machine.verdicts.append(ACCEPT)


def _divert(note: str) -> Callable[[Machine, Attributes], None]:
    def run(machine: Machine, _: Attributes) -> None:
        machine.verdicts.append(Verdict(Action.DIVERT, note=note))

    return run


def _xt_match(machine: Machine, fields: Attributes) -> None:
    name, revision, info = text(memoryview(fields[1])), number_of(fields, 2), fields.get(3, b"")
    result = xt_matches.match(name, revision, info, machine.packet)
    machine.require(result.value, result.doubts)


def _xt_target(machine: Machine, fields: Attributes) -> None:
    name, revision, info = text(memoryview(fields[1])), number_of(fields, 2), fields.get(3, b"")
    result = xt_targets.target(name, revision, info, machine.packet)
    machine.packet = result.packet
    machine.untracked |= result.untracked
    machine.changes = result.changes or machine.changes
    machine.doubt(result.doubts)
    if result.verdict is not None:
        machine.verdicts.append(result.verdict)


EXPRESSIONS: Mapping[str, Callable[[Machine, Attributes], None]] = {
    "bitwise": _bitwise,
    "byteorder": _byteorder,
    "cmp": _compare,
    "connlimit": _connection_limit,
    "counter": _nothing,
    "ct": _conntrack,
    "dup": _nothing,
    "dynset": _dynset,
    "exthdr": _unknown_value("an option or extension header", 1),
    "fib": _fib,
    "flow_offload": _nothing,
    "fwd": _divert("to another device"),
    "hash": _hash,
    "immediate": _immediate,
    "last": _nothing,
    "limit": _limit,
    "log": _nothing,
    "lookup": _lookup,
    "masq": _masquerade,
    "match": _xt_match,
    "meta": _meta,
    "nat": _nat,
    "notrack": _notrack,
    "numgen": _numgen,
    "objref": _object,
    "osf": _unknown_value("an operating system's fingerprint", 1),
    "payload": _payload,
    "queue": _divert("to a program's queue"),
    "quota": _quota,
    "range": _range,
    "redir": _redirect,
    "reject": _reject,
    "rt": _unknown_value("a route", 1),
    "socket": _socket,
    "synproxy": _divert("to synproxy"),
    "target": _xt_target,
    "tproxy": _divert("to a transparent proxy"),
    "tunnel": _no_match,
    "xfrm": _no_match,
}
