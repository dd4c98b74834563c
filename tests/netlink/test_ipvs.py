"""IPVS's messages, against what a kernel (6.1) wrote, and against themselves."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pyproxy.model.address import Address, Backend, Family, Port, backend, parse_address
from pyproxy.netlink import ipvs
from pyproxy.netlink.ipvs import PERSISTENT, Messages, Scheduling, Server, Virtual

RECORDED = Path(__file__).with_name("recorded")
DUMPS = json.loads((RECORDED / "ipvs-6.1.json").read_text(encoding="utf-8"))
WEB = Virtual(Family.IPV4, 6, parse_address("10.96.0.1"), Port(80))
DNS = Virtual(Family.IPV6, 17, parse_address("fd00::1"), Port(53))
MARKED = Virtual(Family.IPV4, 0, Address(b""), Port(0), 0x50000004)
IPV4 = backend(parse_address("10.244.0.5"), Port(8080))
WRITE = Messages(30)


def recorded(name: str) -> list[memoryview]:
    return [memoryview(bytes.fromhex(each)) for each in DUMPS[name]]


def test_virtual_services_are_read_as_the_kernel_writes_them() -> None:
    assert ipvs.read_virtuals(recorded("virtuals")) == {
        WEB: Scheduling("rr"),
        DNS: Scheduling("sh", PERSISTENT | 0x08, 300),
        MARKED: Scheduling("mh", 0x18),
    }


def test_real_servers_are_read_as_the_kernel_writes_them() -> None:
    assert ipvs.read_servers(recorded("servers"), Family.IPV4) == [Server(IPV4, 0)]
    assert ipvs.read_servers(recorded("servers"), Family.IPV6) == []


FAMILIES = st.sampled_from(Family)


@st.composite
def virtuals(draw: st.DrawFn) -> Virtual:
    family = draw(FAMILIES)
    if draw(st.booleans()):
        return Virtual(family, 0, Address(b""), Port(0), draw(st.integers(1, 0xFFFFFFFF)))
    size = family.bits // 8
    address = Address(draw(st.binary(min_size=size, max_size=size)))
    port = Port(draw(st.integers(1, 0xFFFF)))
    return Virtual(family, draw(st.sampled_from((6, 17, 132))), address, port)


@given(
    virtuals(),
    st.sampled_from(("rr", "wlc", "mh")),
    st.integers(0, 0x39).filter(lambda flags: not flags & 0x06),
    st.integers(1, 86400),
)
def test_a_virtual_service_is_read_as_it_was_written(
    virtual: Virtual, scheduler: str, flags: int, timeout: int
) -> None:
    how = Scheduling(scheduler, flags, timeout if flags & PERSISTENT else 0)
    for request in (WRITE.add_virtual(virtual, how), WRITE.set_virtual(virtual, how)):
        assert ipvs.read_virtuals([memoryview(request.body)]) == {virtual: how}


@given(virtuals(), st.binary(min_size=18, max_size=18), st.integers(0, 65535))
def test_a_real_server_is_read_as_it_was_written(
    virtual: Virtual, packed: bytes, weight: int
) -> None:
    place = Backend(packed[: virtual.family.bits // 8 + 2])
    for request in (
        WRITE.add_server(virtual, place, weight),
        WRITE.set_server(virtual, place, weight),
    ):
        found = ipvs.read_servers([memoryview(request.body)], virtual.family)
        assert found == [Server(place, weight)]
    gone = WRITE.delete_server(virtual, place)
    assert ipvs.read_servers([memoryview(gone.body)], virtual.family) == [Server(place, 0)]
