"""All real servers at once, from the text that IPVS lists them in.

Over netlink they are asked for one virtual service at a time, each with two dozen counters. With
5,000 virtual services the text of /proc/net/ip_vs is read an order of magnitude faster.

Facts: ip_vs_info_seq_show in net/netfilter/ipvs/ip_vs_ctl.c. All numbers are hexadecimal but for
weights and counts; IPv6 addresses are written out, in brackets.
"""

from __future__ import annotations

from pyproxy.model.address import Address, Backend, Family, Port, Protocol
from pyproxy.netlink.ipvs import Server, Virtual

_PROTOCOLS = {protocol.name: int(protocol) for protocol in Protocol}
_MARK = "FWM"
_SERVER = "->"


def read(text: str) -> dict[Virtual, list[Server]]:
    """Read the text; a virtual service by its mark has both families' key, where it has servers.

    The text does not tell the family of a virtual service by a mark, so that is its servers'. Lines
    that nobody of us can read are passed over.
    """
    found: dict[Virtual, list[Server]] = {}
    mark = 0
    servers: list[Server] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 6 and words[0] == _SERVER:
            server = _server(words)
            if server is None:
                continue
            if mark:
                virtual = Virtual(_family(server.backend), 0, Address(b""), Port(0), mark)
                found.setdefault(virtual, []).append(server)
            else:
                servers.append(server)
        elif len(words) >= 3 and words[0] in _PROTOCOLS:
            mark, servers = 0, []
            place = _place(words[1])
            if place is not None:
                address, port = Address(place[:-2]), Port(int.from_bytes(place[-2:], "big"))
                family = _family(place)
                found[Virtual(family, _PROTOCOLS[words[0]], address, port)] = servers
        elif len(words) >= 3 and words[0] == _MARK:
            mark = int(words[1], 16)
        else:
            mark, servers = 0, []
    return found


def _server(words: list[str]) -> Server | None:
    place = _place(words[1])
    numbers = words[3:6]
    if place is None or not all(number.isdigit() for number in numbers):
        return None
    weight, active, inactive = map(int, numbers)
    return Server(place, weight, active + inactive, active)


def _place(word: str) -> Backend | None:
    address, _, port = word.rpartition(":")
    digits = address.strip("[]").replace(":", "") + port
    try:
        return Backend(bytes.fromhex(digits))
    except ValueError:
        return None


def _family(place: bytes) -> Family:
    return Family.IPV4 if len(place) == 6 else Family.IPV6
