"""Addresses that no Service and no endpoint can have, in every field that has addresses."""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.config.settings import is_loopback
from pyproxy.config.values import address as flag_address
from pyproxy.model.address import Address, address_text, backend_text, parse_network
from pyproxy.model.objects import Kind
from pyproxy.model.special_addresses import TABLE, special
from pyproxy.source.decode import decode_object
from tests.agent.live import broadcast_addresses
from tests.agent.objects import Stage
from tests.builders import endpoint_slice, ip, name, service, web
from tests.namespaces import empty_namespace

SPECIAL = {
    "IPv4": (
        *("0.0.0.0", "0.0.0.1", "0.255.255.255", "127.0.0.1", "127.255.255.254"),
        *("169.254.0.1", "169.254.169.254", "224.0.0.1", "239.255.255.255", "255.255.255.255"),
        # Read as IPv4, as Go does.
        *("::ffff:127.0.0.1", "::ffff:0.0.0.1", "0.0.0.01", "127.000.000.001"),
    ),
    "IPv6": (
        *("::", "::1", "::2", "::127.0.0.1", "::10.244.1.5", "::ffff", "fe80::1"),
        *("febf:ffff::1", "ff02::1", "ff05::1:3", "ffff::1"),
    ),
}
USABLE = {
    "IPv4": ("1.0.0.1", "126.255.255.255", "128.0.0.1", "169.253.0.1", "223.0.0.1", "240.0.0.1"),
    "IPv6": ("64:ff9b::a00:1", "::1:0:0:1", "fec0::1", "fe00::1", "fd00::1", "2001:db8::1"),
}
CASES = [
    (family, text, usable)
    for usable, table in ((False, SPECIAL), (True, USABLE))
    for family, texts in table.items()
    for text in texts
]


def decoded(kind: Kind, **fields: Any) -> Any:
    metadata = {"name": "x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}}
    obj = {"kind": kind.value, "metadata": metadata, **fields}
    return decode_object(kind, json.dumps(obj).encode()).value


def cluster_ip(family: str, text: str) -> Any:
    ports = [{"port": 80}]
    spec = {"clusterIP": text, "clusterIPs": [text], "ipFamilies": [family], "ports": ports}
    return decoded(Kind.SERVICE, spec=spec).cluster_ips


def external_ip(family: str, text: str) -> Any:
    own = "10.96.0.1" if family == "IPv4" else "fd00:10:96::1"
    spec = {"clusterIP": own, "externalIPs": [text], "ports": [{"port": 80}]}
    return decoded(Kind.SERVICE, spec=spec).external_ips


def load_balancer_ip(family: str, text: str) -> Any:
    own = "10.96.0.1" if family == "IPv4" else "fd00:10:96::1"
    spec = {"type": "LoadBalancer", "clusterIP": own, "ports": [{"port": 80}]}
    status = {"loadBalancer": {"ingress": [{"ip": text}]}}
    return decoded(Kind.SERVICE, spec=spec, status=status).load_balancer_ips


def endpoint_address(family: str, text: str) -> Any:
    entries = [{"addresses": [text]}]
    found = decoded(Kind.ENDPOINT_SLICE, addressType=family, endpoints=entries)
    return tuple(each.address for each in found.endpoints)


def node_address(_: str, text: str) -> Any:
    status = {"addresses": [{"type": "InternalIP", "address": text}]}
    return decoded(Kind.NODE, status=status).addresses


@pytest.mark.parametrize(
    "field",
    [cluster_ip, external_ip, load_balancer_ip, endpoint_address, node_address],
)
@pytest.mark.parametrize(("family", "text", "usable"), CASES)
def test_each_field_refuses_them(
    field: Callable[[str, str], Any], family: str, text: str, usable: bool
) -> None:
    found = field(family, text)
    assert found == ((ip(text),) if usable else ())


def test_a_flag_refuses_them_but_for_loopback() -> None:
    for text in (*SPECIAL["IPv4"], *SPECIAL["IPv6"]):
        if text in {"0.0.0.0", "::"}:
            assert flag_address(text) is None
        elif is_loopback(ip(text)):
            assert flag_address(text) == ip(text)
        else:
            with pytest.raises(ValueError, match="give an address of this node"):
                flag_address(text)


@pytest.mark.parametrize(("text", "noun", "source"), TABLE)
def test_the_table_names_its_sources(text: str, noun: str, source: str) -> None:
    network = parse_network(text)
    assert "RFC" in source
    assert special(network.last)
    assert noun in {special(network.address), special(network.last)}


def plainly_special(address: Address) -> bool:
    """Return what Python's own tables say, except for networks that clusters use."""
    text = address_text(address)
    if len(address) == 4:
        plain = IPv4Address(text)
        return (
            plain.is_loopback
            or plain.is_link_local
            or plain.is_multicast
            or plain in IPv4Network("0.0.0.0/8")
            or text == "255.255.255.255"
        )
    six = IPv6Address(text)
    return (
        six.is_loopback
        or six.is_link_local
        or six.is_multicast
        or six in IPv6Network("::/96")
        or six.ipv4_mapped is not None
    )


@given(st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)))
@settings(max_examples=300)
def test_any_address_is_special_or_not_by_the_table(packed: bytes) -> None:
    address = Address(packed)
    assert bool(special(address)) == plainly_special(address)


BROADCAST = "172.30.0.255"


def test_broadcast_addresses_of_the_node_are_neither_frontends_nor_endpoints() -> None:
    stage = Stage()
    stage.broadcasts = (ip(BROADCAST),)
    addresses = ["10.244.1.5", *[BROADCAST] * 50]
    stage.begin(
        service("web", 1),
        endpoint_slice("web", addresses),
        endpoint_slice("web", [BROADCAST], number=1),
        web(name=name("external"), cluster_ips=["10.96.0.2"], external_ips=[BROADCAST]),
    )
    assert sorted(map(str, stage.agent.problems())) == [
        "Service shop/external: spec.externalIPs: 172.30.0.255 is a broadcast address of this "
        "node's networks; ignored",
        "Service shop/web: endpoints of EndpointSlice shop/web-0: some are broadcast addresses of "
        "this node's networks; these are ignored",
        "Service shop/web: endpoints of EndpointSlice shop/web-1: some are broadcast addresses of "
        "this node's networks; these are ignored",
    ]
    routing = stage.recorder.commits[-1].routings[name("web")]
    assert routing is not None
    assert [backend_text(each) for each in routing.ports[0].cluster] == ["10.244.1.5:8080"]
    # The node leaves that network: the address is an ordinary one again.
    stage.broadcasts = ()
    stage.agent.addresses_changed()
    stage.settle()
    assert set(stage.recorder.commits[-1].routings) == {name("web"), name("external")}
    assert stage.agent.problems() == ()


@pytest.mark.kernel
def test_the_kernel_names_its_broadcast_addresses() -> None:
    with empty_namespace("broadcast") as here:
        here.ip(
            [
                "link add name v0 type veth peer name v1",
                "addr add 172.30.0.11/24 brd 172.30.0.250 dev v0",
                "addr add 10.1.2.3/22 dev v0",
                "addr add 10.9.9.8/31 dev v0",
                "addr add 10.9.9.9/32 dev v0",
                "addr add fd30::11/64 dev v0",
            ]
        )
        found = here.call(broadcast_addresses)
    wanted = {"172.30.0.255", "172.30.0.250", "10.1.3.255"}
    assert set(map(address_text, found)) - {"127.255.255.255"} == wanted
