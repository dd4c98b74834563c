"""Evaluate a rule of nf_tables: its expressions, one after the other, over registers.

Facts: net/netfilter/nft_*.c. An expression that compares ends the rule, or leaves a doubt; one that
is not known here leaves a doubt, because it may end the rule too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from pyproxy.hostnet.firewall import metadata, xt_matches, xt_targets
from pyproxy.hostnet.firewall.bits import (
    Bits,
    DoubtKind,
    Doubts,
    doubt,
    is_between,
    is_equal,
    join_doubts,
    known,
    mask_and_xor,
    number,
    unknown,
)
from pyproxy.hostnet.firewall.guards import Guard, guards_of
from pyproxy.hostnet.firewall.hook_packet import HookPacket
from pyproxy.hostnet.firewall.registers import Registers
from pyproxy.hostnet.firewall.sets import SetElement, Sets, candidates
from pyproxy.hostnet.firewall.verdicts import ACCEPT, DROP, RETURN, Action, Effect, Verdict
from pyproxy.model.address import Address, address_text
from pyproxy.netlink.attributes import attribute_map, text
from pyproxy.netlink.rules import Expression, read_expressions

Attributes = Mapping[int, bytes]

_VERDICT_REGISTER = 0
_JUMP, _GOTO, _RETURN, _CONTINUE, _BREAK = -3, -4, -5, -1, -2


class NftRule:
    """A rule as it was read: its packed expressions, decoded when a packet meets it."""

    __slots__ = ("_decoded", "_guards", "_packed", "_sets", "handle")

    def __init__(self, handle: int, packed: bytes, sets: Sets) -> None:
        self.handle = handle
        self._packed = packed
        self._sets = sets
        self._decoded: tuple[Expression, ...] | None = None
        self._guards: tuple[Guard, ...] = ()

    @property
    def where(self) -> str:
        """Its handle, as nft -a lists it."""
        return f"handle {self.handle}"

    def apply(self, packet: HookPacket) -> Effect:
        """Return its effect on a packet. Raises KernelError."""
        if self._decoded is None:
            self._decoded = tuple(read_expressions(self._packed))
            self._guards = guards_of(self._decoded)
        if self._guards and self._sets.fields(packet).refutes(self._guards):
            return Effect(False, packet)
        machine = _Machine(packet, self._sets)
        for expression in self._decoded:
            run = _EXPRESSIONS.get(expression.name)
            if run is None:
                machine.doubt(doubt(DoubtKind.UNREADABLE, f"expression {expression.name}"))
            else:
                run(machine, expression.fields)
            if machine.broken:
                return Effect(False, machine.packet, untracked=False)
            if machine.verdicts:
                break
        return Effect(
            True, machine.packet, tuple(machine.verdicts), machine.doubts, machine.untracked
        )


class _Machine:
    """The evaluation of one rule."""

    def __init__(self, packet: HookPacket, sets: Sets) -> None:
        self.packet = packet
        self.sets = sets
        self.registers = Registers()
        self.doubts: Doubts = ()
        self.verdicts: list[Verdict] = []
        self.broken = False
        self.untracked = False

    def doubt(self, doubts: Doubts) -> None:
        self.doubts = join_doubts(self.doubts, doubts)

    def require(self, result: bool | None, doubts: Doubts) -> None:
        """End the rule if a comparison is false; note the doubts if it is undecided."""
        if result is None:
            self.doubt(doubts)
        elif not result:
            self.broken = True

    def store(self, fields: Attributes, kind: int, value: Bits | None) -> None:
        """Write a value into the register that a field names; no value ends the rule."""
        if value is None:
            self.broken = True
        else:
            self.registers.store(_number(fields, kind), value)


def _number(fields: Attributes, kind: int) -> int:
    return int.from_bytes(fields.get(kind, b""), "big")


def _data(fields: Attributes, kind: int) -> bytes:
    return bytes(attribute_map(fields.get(kind, b"")).get(1, b""))


def _negate(result: bool | None, negated: bool) -> bool | None:
    return result if result is None else result != negated


def _compare(machine: _Machine, fields: Attributes) -> None:
    data = _data(fields, 3)
    value = machine.registers.load(_number(fields, 1), len(data))
    other, top = int.from_bytes(data, "big"), (1 << 8 * len(data)) - 1
    operator = _number(fields, 2)
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


def _range(machine: _Machine, fields: Attributes) -> None:
    low, high = _data(fields, 3), _data(fields, 4)
    value = machine.registers.load(_number(fields, 1), len(low))
    result = is_between(value, int.from_bytes(low, "big"), int.from_bytes(high, "big"))
    machine.require(_negate(result, _number(fields, 2) == 1), value.doubts)


def _bitwise(machine: _Machine, fields: Attributes) -> None:
    size, operation = _number(fields, 3), _number(fields, 6)
    value = machine.registers.load(_number(fields, 1), size)
    if operation == 0:
        mask, xor = (int.from_bytes(_data(fields, kind), "big") for kind in (4, 5))
        found = mask_and_xor(value, mask, xor)
    else:
        found = unknown(size, doubt(DoubtKind.UNREADABLE, "a bit operation"))
        if operation in (1, 2) and value.complete and size == 4:
            # Shifts are of numbers in host order.
            shift = int.from_bytes(_data(fields, 7), "little")
            before = int.from_bytes(value.data(), "little")
            after = before << shift if operation == 1 else before >> shift
            found = number(after & 0xFFFFFFFF)
    machine.store(fields, 2, found)


def _byteorder(machine: _Machine, fields: Attributes) -> None:
    length, size = _number(fields, 4), _number(fields, 5)
    value = machine.registers.load(_number(fields, 1), length)
    if value.complete and size:
        data = value.data()
        swapped = b"".join(data[i : i + size][::-1] for i in range(0, length, size))
        value = known(swapped)
    else:
        value = unknown(length, value.doubts)
    machine.store(fields, 2, value)


def _immediate(machine: _Machine, fields: Attributes) -> None:
    data = attribute_map(fields.get(2, b""))
    if _number(fields, 1) != _VERDICT_REGISTER:
        machine.store(fields, 1, known(bytes(data.get(1, b""))))
    elif (verdict := _verdict(data.get(2))) is not None:
        machine.verdicts.append(verdict)


def _verdict(packed: memoryview | None) -> Verdict | None:
    fields = attribute_map(packed or b"")
    code = int.from_bytes(fields.get(1, b""), "big", signed=True)
    target = text(fields[2]) if 2 in fields else ""
    if code == _JUMP:
        return Verdict(Action.JUMP, target)
    if code == _GOTO:
        return Verdict(Action.GOTO, target)
    if code == _CONTINUE:
        return None
    # The low byte is netfilter's verdict, the others are a queue's number.
    plain = {0: DROP, 1: ACCEPT, 3: Verdict(Action.DIVERT, note="queue")}
    return RETURN if code == _RETURN else plain.get(code & 0xFF, ACCEPT)


def _payload(machine: _Machine, fields: Attributes) -> None:
    base, offset, size = (_number(fields, kind) for kind in (2, 3, 4))
    if 5 in fields:
        _write_payload(machine, base, offset, machine.registers.load(_number(fields, 5), size))
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


def _write_payload(machine: _Machine, base: int, offset: int, value: Bits) -> None:
    at = 16 if machine.packet.family.value == 4 else 24
    if base == 1 and offset == at and value.complete:
        address = Address(value.data())
        machine.verdicts.append(
            Verdict(Action.TRANSLATE, note=f"to {address_text(address)}, without conntrack")
        )


def _meta(machine: _Machine, fields: Attributes) -> None:
    key = _number(fields, 2)
    if 3 not in fields:
        machine.store(fields, 1, metadata.meta(key, machine.packet))
    elif key == 3:
        mark = machine.registers.load(_number(fields, 3), 4)
        machine.packet = replace(machine.packet, mark=mark)


def _conntrack(machine: _Machine, fields: Attributes) -> None:
    key = _number(fields, 2)
    packet = machine.packet
    if 4 not in fields:
        direction = fields[3][0] if fields.get(3) else None
        machine.store(fields, 1, metadata.conntrack(key, direction, packet))
    elif key == 3 and packet.connection:
        mark = machine.registers.load(_number(fields, 4), 4)
        machine.packet = replace(packet, connection=replace(packet.connection, mark=mark))


def _fib(machine: _Machine, fields: Attributes) -> None:
    found = metadata.fib(_number(fields, 2), _number(fields, 3), machine.packet)
    machine.store(fields, 1, found)


def _lookup(machine: _Machine, fields: Attributes) -> None:
    name = text(memoryview(fields[1]))
    inverted = bool(_number(fields, 5) & 1)
    shape = machine.sets.set_shape(name)
    key = machine.registers.load(_number(fields, 2), shape.length)
    if key.complete:
        element = machine.sets.element(name, key.data())
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
    machine: _Machine, fields: Attributes, elements: Sequence[SetElement], inverted: bool
) -> None:
    """Continue with the elements of a set or map that a key is in, or may be in."""
    if 3 not in fields:
        machine.require(bool(elements) != inverted, ())
    elif not elements:
        machine.broken = True
    elif _number(fields, 3) == _VERDICT_REGISTER:
        verdicts = (_verdict(attribute_map(each.data).get(2)) for each in elements)
        machine.verdicts += list(dict.fromkeys(filter(None, verdicts)))
    elif len(elements) == 1:
        machine.store(fields, 3, known(bytes(attribute_map(elements[0].data).get(1, b""))))
    else:
        machine.store(fields, 3, unknown(16, machine.doubts))


def _limit(machine: _Machine, fields: Attributes) -> None:
    _rate(machine, bool(_number(fields, 5) & 1), "a rate limit")


def _connection_limit(machine: _Machine, fields: Attributes) -> None:
    _rate(machine, bool(_number(fields, 2) & 1), "a limit of connections")


def _quota(machine: _Machine, fields: Attributes) -> None:
    _rate(machine, bool(_number(fields, 2) & 1), "a quota")


def _rate(machine: _Machine, over: bool, what: str) -> None:
    # "over" rates match in excess only; both leave the doubt.
    del over
    machine.doubt(doubt(DoubtKind.RATE, what))


def _numgen(machine: _Machine, fields: Attributes) -> None:
    machine.store(fields, 1, unknown(4, doubt(DoubtKind.CHANCE, "a random number")))


def _hash(machine: _Machine, fields: Attributes) -> None:
    machine.store(fields, 2, unknown(4, doubt(DoubtKind.CHANCE, "a hash")))


def _unknown_value(what: str, kind: int) -> Callable[[_Machine, Attributes], None]:
    def run(machine: _Machine, fields: Attributes) -> None:
        if kind in fields:
            machine.store(fields, kind, unknown(16, doubt(DoubtKind.UNREADABLE, what)))

    return run


def _no_match(machine: _Machine, _: Attributes) -> None:
    machine.broken = True


def _nothing(_machine: _Machine, _fields: Attributes) -> None:
    """Do nothing: the expression only counts, logs or changes what no rule tests."""


def _notrack(machine: _Machine, _: Attributes) -> None:
    # The kernel ignores it once conntrack has seen the packet.
    machine.untracked = machine.packet.connection is None


def _object(machine: _Machine, fields: Attributes) -> None:
    # 1 counter, 2 quota, 3 ct helper, 4 limit, 5 connlimit, 7 ct timeout, 8 secmark, 10 synproxy.
    if _number(fields, 1) in (2, 4, 5):
        machine.doubt(doubt(DoubtKind.RATE, "a limit or quota object"))
    elif _number(fields, 1) == 10:
        machine.verdicts.append(Verdict(Action.DIVERT, note="synproxy"))


def _reject(machine: _Machine, _: Attributes) -> None:
    machine.verdicts.append(Verdict(Action.REJECT))


def _nat(machine: _Machine, fields: Attributes) -> None:
    # NFT_NAT_SNAT is 0, NFT_NAT_DNAT 1. A source translation changes no way through this node.
    if _number(fields, 1) != 1:
        machine.verdicts.append(ACCEPT)
        return
    size = 4 if _number(fields, 2) == 2 else 16
    target = ""
    if 3 in fields:
        address = machine.registers.load(_number(fields, 3), size)
        target = address_text(Address(address.data())) if address.complete else "another address"
    machine.verdicts.append(Verdict(Action.TRANSLATE, note=f"to {target}" if target else ""))


def _redirect(machine: _Machine, _: Attributes) -> None:
    machine.verdicts.append(Verdict(Action.TRANSLATE, note="to this node"))


def _masquerade(machine: _Machine, _: Attributes) -> None:
    machine.verdicts.append(ACCEPT)


def _divert(note: str) -> Callable[[_Machine, Attributes], None]:
    def run(machine: _Machine, _: Attributes) -> None:
        machine.verdicts.append(Verdict(Action.DIVERT, note=note))

    return run


def _xt_match(machine: _Machine, fields: Attributes) -> None:
    name, revision, info = text(memoryview(fields[1])), _number(fields, 2), fields.get(3, b"")
    result = xt_matches.match(name, revision, info, machine.packet)
    machine.require(result.value, result.doubts)


def _xt_target(machine: _Machine, fields: Attributes) -> None:
    name, revision, info = text(memoryview(fields[1])), _number(fields, 2), fields.get(3, b"")
    result = xt_targets.target(name, revision, info, machine.packet)
    machine.packet = result.packet
    machine.untracked |= result.untracked
    machine.doubt(result.doubts)
    if result.verdict is not None:
        machine.verdicts.append(result.verdict)


_EXPRESSIONS: Mapping[str, Callable[[_Machine, Attributes], None]] = {
    "bitwise": _bitwise,
    "byteorder": _byteorder,
    "cmp": _compare,
    "connlimit": _connection_limit,
    "counter": _nothing,
    "ct": _conntrack,
    "dup": _nothing,
    "dynset": _nothing,
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
    "socket": _no_match,
    "synproxy": _divert("to synproxy"),
    "target": _xt_target,
    "tproxy": _divert("to a transparent proxy"),
    "tunnel": _no_match,
    "xfrm": _no_match,
}
