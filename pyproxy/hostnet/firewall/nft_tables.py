"""Read nf_tables of all families: base chains, rules of a chain when it is met, single elements.

Facts: include/uapi/linux/netfilter/nf_tables.h. The kernel filters a dump of rules by table and
chain, and looks up an element by its key. Nothing is read whole that may be large.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec

from pyproxy.errors import KernelError
from pyproxy.hostnet.firewall.guards import Fields
from pyproxy.hostnet.firewall.hook_packet import Hook, HookPacket
from pyproxy.hostnet.firewall.nft_rule import NftRule
from pyproxy.hostnet.firewall.sets import SetElement, SetShape
from pyproxy.hostnet.firewall.verdicts import ACCEPT, DROP, Chain
from pyproxy.netlink.attributes import attribute, attribute_map, attributes, nested, string, text
from pyproxy.netlink.bounded_dump import BoundedNetfilter
from pyproxy.netlink.nfnetlink import (
    NFPROTO_INET,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NFPROTO_UNSPEC,
    Message,
)
from pyproxy.netlink.nftables import message_type

NFPROTO_NETDEV, NFPROTO_BRIDGE = 5, 7
FAMILY_NAMES = {
    NFPROTO_INET: "inet",
    NFPROTO_IPV4: "ip",
    NFPROTO_IPV6: "ip6",
    NFPROTO_NETDEV: "netdev",
    NFPROTO_BRIDGE: "bridge",
}

MOST_BASE_CHAINS = 1_000
MOST_CHAIN_RULES = 5_000
"""Rules of one chain that are read; a longer chain is undecided beyond them."""

MOST_ELEMENTS = 1_000
"""Elements of a set that are compared with a packet whose key is not known as a whole."""

_GETTABLE, _GETCHAIN, _GETRULE, _GETSET, _GETSETELEM = 1, 4, 7, 10, 13
_TABLE_NAME, _TABLE_FLAGS = 1, 2
_DORMANT = 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY, _HOOK_DEVICE, _HOOK_DEVICES = 1, 2, 3, 4
_RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_USERDATA = 3, 4, 7
_SET_FLAGS, _SET_KEY_LENGTH, _SET_DATA_TYPE, _SET_DESC = 3, 5, 6, 9
_ELEMENTS_LIST, _ELEMENT = 3, 1
_ELEM_KEY, _ELEM_DATA, _ELEM_FLAGS, _ELEM_KEY_END = 1, 2, 3, 10
_CATCHALL = 2
# NFTA_CHAIN_HOOK, which base chains alone have, begins with its number's header: 8 bytes, type 1.
_HOOK_PATTERN = struct.pack("=HHH", _CHAIN_HOOK, 8, _HOOK_NUMBER)


class BaseChain(msgspec.Struct, frozen=True):
    """A chain at a hook. `hook` is the kernel's number, `devices` those of an ingress hook."""

    family: int
    table: str
    name: str
    hook: int
    priority: int
    kind: str
    drops: bool
    devices: tuple[str, ...] = ()

    @property
    def table_name(self) -> str:
        """The table as nft names it."""
        return f"{FAMILY_NAMES.get(self.family, self.family)} {self.table}"

    def is_at(self, hook: Hook, device: str) -> bool:
        """Return whether packets at a hook of the IP families, or of a device, meet the chain."""
        if self.family == NFPROTO_NETDEV:
            wanted = {Hook.INGRESS: 0, Hook.EGRESS: 1}.get(hook)
            return self.hook == wanted and device in self.devices
        if hook is Hook.INGRESS:
            return self.hook == Hook.INGRESS and device in self.devices
        return self.hook == hook and hook is not Hook.EGRESS


class NftTables:
    """The tables of the network namespace that it is made in, read as packets meet them.

    Methods block on the kernel and raise KernelError.
    """

    def __init__(self) -> None:
        self._netlink = BoundedNetfilter()
        self._tables: dict[tuple[int, str], TableReader] = {}

    @property
    def requests(self) -> int:
        """The number of requests so far."""
        return self._netlink.requests

    @property
    def rows(self) -> int:
        """The number of objects read so far."""
        return self._netlink.rows

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._netlink.close()

    def base_chains(self) -> tuple[list[BaseChain], bool]:
        """Return the chains at hooks, of tables that are not dormant, and whether these are all."""
        dormant = set()
        request = Message(message_type(_GETTABLE), 0, b"", NFPROTO_UNSPEC)
        for family, reply in self._netlink.dump(request, MOST_BASE_CHAINS)[0]:
            fields = attribute_map(reply)
            if _number(fields.get(_TABLE_FLAGS)) & _DORMANT:
                dormant.add((family, text(fields[_TABLE_NAME])))
        request = Message(message_type(_GETCHAIN), 0, b"", NFPROTO_UNSPEC)
        limit = 100 * MOST_BASE_CHAINS
        replies, complete = self._netlink.dump(request, limit, _HOOK_PATTERN)
        found = []
        for family, reply in replies:
            chain = _base_chain(family, attribute_map(reply))
            # Chains of ARP (3) have hooks with the same numbers.
            if family not in FAMILY_NAMES or chain is None:
                continue
            if (family, chain.table) not in dormant:
                found.append(chain)
        return found[:MOST_BASE_CHAINS], complete and len(found) <= MOST_BASE_CHAINS

    def table(self, family: int, name: str) -> TableReader:
        """Return the reader of one table, which remembers what it has read."""
        key = (family, name)
        if key not in self._tables:
            self._tables[key] = TableReader(self._netlink, family, name)
        return self._tables[key]

    def load(self, base: BaseChain) -> Chain:
        """Return a base chain with its rules."""
        chain = self.table(base.family, base.table).chain(base.name)
        return msgspec.structs.replace(chain, policy=DROP if base.drops else ACCEPT)


class TableReader:
    """One table: chains and elements are read when a packet meets them."""

    def __init__(self, netlink: BoundedNetfilter, family: int, name: str) -> None:
        self._netlink = netlink
        self._family = family
        self._name = name
        self._chains: dict[str, Chain] = {}
        self._sets: dict[str, SetShape] = {}
        self._found: dict[tuple[str, bytes], SetElement | None] = {}
        self._all: dict[str, Sequence[SetElement] | None] = {}
        self._fields: Fields | None = None

    def fields(self, packet: HookPacket) -> Fields:
        """Return the fields of a packet, which it keeps until the next packet."""
        if self._fields is None or self._fields.packet is not packet:
            self._fields = Fields(packet)
        return self._fields

    @property
    def label(self) -> str:
        """The table as nft names it."""
        return f"{FAMILY_NAMES.get(self._family, self._family)} {self._name}"

    def title(self, name: str) -> str:
        """Return a chain's name, which verdicts have too."""
        return name

    def chain(self, name: str) -> Chain:
        """Return a chain of the table."""
        if name not in self._chains:
            body = string(1, self._name) + string(2, name)
            request = Message(message_type(_GETRULE), 0, body, self._family)
            replies, complete = self._netlink.dump(request, MOST_CHAIN_RULES)
            rules = [self._rule(attribute_map(reply)) for _, reply in replies]
            self._chains[name] = Chain(self.label, name, rules, ACCEPT, complete)
        return self._chains[name]

    def _rule(self, fields: dict[int, memoryview]) -> NftRule:
        handle = int.from_bytes(fields.get(_RULE_HANDLE, b""), "big")
        return NftRule(handle, bytes(fields.get(_RULE_EXPRESSIONS, b"")), self)

    def set_shape(self, name: str) -> SetShape:
        """Return a set's flags, and the lengths of the fields of its keys."""
        if name not in self._sets:
            body = string(1, self._name) + string(2, name)
            fields = attribute_map(
                self._netlink.get(Message(message_type(_GETSET), 0, body, self._family))
            )
            description = attribute_map(fields.get(_SET_DESC, b""))
            lengths = tuple(
                _number(attribute_map(item).get(1))
                for _, item in attributes(description.get(2, b""))
            )
            length = _number(fields.get(_SET_KEY_LENGTH))
            self._sets[name] = SetShape(
                _number(fields.get(_SET_FLAGS)),
                length,
                lengths or (length,),
                _number(description.get(1)),
            )
        return self._sets[name]

    def element(self, set_name: str, key: bytes) -> SetElement | None:
        """Return the element that a key is in, None if there is none."""
        if (set_name, key) not in self._found:
            found = self._get(set_name, nested(_ELEM_KEY, attribute(1, key)))
            if found is None:
                flags = attribute(_ELEM_FLAGS, struct.pack(">I", _CATCHALL))
                found = self._get(set_name, flags)
            self._found[set_name, key] = found
        return self._found[set_name, key]

    def _get(self, set_name: str, element: bytes) -> SetElement | None:
        items = nested(_ELEMENTS_LIST, nested(_ELEMENT, element))
        body = string(1, self._name) + string(2, set_name) + items
        try:
            reply = self._netlink.get(Message(message_type(_GETSETELEM), 0, body, self._family))
        except KernelError as error:
            # ENOENT: no such element. EINVAL: a kernel before 5.13 knows no catchall.
            if error.errno in (2, 22):
                return None
            raise
        found = _elements(reply)
        return found[0] if found else None

    def elements(self, set_name: str) -> Sequence[SetElement] | None:
        """Return all elements of a set, None if there are more than MOST_ELEMENTS."""
        if set_name not in self._all:
            body = string(1, self._name) + string(2, set_name)
            request = Message(message_type(_GETSETELEM), 0, body, self._family)
            # A reply has hundreds of elements.
            replies, complete = self._netlink.dump(request, 1 + MOST_ELEMENTS // 100)
            found = [element for _, reply in replies for element in _elements(reply)]
            usable = complete and len(found) <= 2 * MOST_ELEMENTS
            self._all[set_name] = found if usable else None
        return self._all[set_name]


def _base_chain(family: int, fields: dict[int, memoryview]) -> BaseChain | None:
    if _CHAIN_HOOK not in fields:
        return None
    hook = attribute_map(fields[_CHAIN_HOOK])
    devices = [text(hook[_HOOK_DEVICE])] if _HOOK_DEVICE in hook else []
    devices += [text(name) for _, name in attributes(hook.get(_HOOK_DEVICES, b""))]
    return BaseChain(
        family,
        text(fields[_CHAIN_TABLE]),
        text(fields[_CHAIN_NAME]),
        _number(hook.get(_HOOK_NUMBER)),
        struct.unpack(">i", hook[_HOOK_PRIORITY])[0],
        text(fields.get(_CHAIN_TYPE, memoryview(b""))),
        # NF_DROP is 0, NF_ACCEPT 1.
        _number(fields.get(_CHAIN_POLICY, memoryview(b"\0\0\0\1"))) == 0,
        tuple(devices),
    )


def _elements(reply: memoryview) -> list[SetElement]:
    found = []
    for _, item in attributes(attribute_map(reply).get(_ELEMENTS_LIST, b"")):
        fields = attribute_map(item)
        flags = _number(fields.get(_ELEM_FLAGS))
        key, end = _value(fields.get(_ELEM_KEY)), _value(fields.get(_ELEM_KEY_END))
        data = bytes(fields[_ELEM_DATA]) if _ELEM_DATA in fields else b""
        found.append(SetElement(key, end, bool(flags & 1), bool(flags & _CATCHALL), data))
    return found


def _value(data: memoryview | None) -> bytes:
    return bytes(attribute_map(data).get(1, b"")) if data is not None else b""


def _number(value: memoryview | None) -> int:
    return int.from_bytes(value, "big") if value is not None else 0
