"""Elements as nft lists them."""

from __future__ import annotations

from pyproxy.dataplane.nft.listing import lines
from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nft.schema import (
    BACKEND,
    FRONTEND,
    HAIRPIN,
    NO_ENDPOINT_SERVICES,
    PODS,
    Field,
    SetKind,
    Table,
    by_name,
)
from pyproxy.model.address import Port, Protocol, backend, parse_address

DATA = SetKind("data", "a map with data", (Field.SADDR, *FRONTEND), BACKEND)
KINDS = by_name([PODS, HAIRPIN, NO_ENDPOINT_SERVICES, DATA])


def test_every_kind_of_element_can_be_listed() -> None:
    home, client = parse_address("fd96::1"), parse_address("fd40::5")
    key = frontend_key(home, Protocol.SCTP, 9)
    table: Table = {
        "hairpin6": {client + client: b""},
        "data6": {client + key: backend(parse_address("fd10::1"), Port(8080)) + b"\0\0"},
        "pods6": {client + client: b""},
        "no-endpoint-services6": {home + b"\x01\0\0\0" + b"\0\x50\0\0": b""},
    }
    assert set(lines(table, KINDS)) == {
        "hairpin6 { fd40::5 . fd40::5 }",
        "data6 { fd40::5 . fd96::1 . sctp . 9 : fd10::1 . 8080 }",
        "pods6 { fd40::5 }",
        "no-endpoint-services6 { fd96::1 . 1 . 80 }",
    }
