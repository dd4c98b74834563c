"""The lab's DNS answers: records of Services and endpoints, and messages on the wire."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproxy_lab import reflector
from pyproxy_lab.dns import records, server
from pyproxy_lab.dns.records import View
from pyproxy_lab.dns.resolv_conf import resolv_conf

SUFFIX = "default.svc.cluster.local."


def service(name: str, namespace: str = "default", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec}


def endpoint(address: str, hostname: str = "", ready: bool | None = True) -> dict[str, Any]:
    made: dict[str, Any] = {"addresses": [address], "conditions": {"ready": ready}}
    return made | ({"hostname": hostname} if hostname else {})


def endpoint_slice(owner: str, *endpoints: dict[str, Any]) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": owner}
    return {
        "metadata": {"name": f"{owner}-1", "namespace": "default", "labels": labels},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": list(endpoints),
    }


SERVICES = (
    service(
        "hello",
        clusterIP="10.96.7.7",
        clusterIPs=["10.96.7.7", "fd00:10:96::77"],
        ports=[
            {"name": "http", "port": 80, "protocol": "TCP"},
            {"name": "ask", "port": 53, "protocol": "UDP"},
        ],
    ),
    service("db", clusterIP="None", clusterIPs=["None"], ports=[{"name": "http", "port": 80}]),
    service("empty", clusterIP="None", ports=[{"port": 80}]),
    service("away", type="ExternalName", externalName="example.org"),
    service("near", type="ExternalName", externalName=f"hello.{SUFFIX}"),
    service("loop", type="ExternalName", externalName=f"loop.{SUFFIX}"),
    service("kube-dns", "kube-system", clusterIP="10.96.0.10", clusterIPs=["10.96.0.10"]),
)
SLICES = (
    endpoint_slice(
        "db",
        endpoint("10.244.1.100", "db-0"),
        endpoint("10.244.2.101", "db-1"),
        endpoint("10.244.1.102"),
        endpoint("10.244.1.103", "db-9", ready=False),
        endpoint("fd10:1::104"),
    ),
)
VIEW = View(
    {(each["metadata"]["namespace"], each["metadata"]["name"]): each for each in SERVICES},
    {("default", each["metadata"]["name"]): each for each in SLICES},
    {("", name): {} for name in ("default", "kube-system", "bare")},
)
READY = {"10.244.1.100", "10.244.2.101", "10.244.1.102"}


def ask(name: str, kind: str) -> tuple[str, set[str]]:
    found = records.answer(VIEW, dns.name.from_text(name), dns.rdatatype.from_text(kind))
    return dns.rcode.to_text(found.rcode), {str(each) for rrset in found.records for each in rrset}


@pytest.mark.parametrize(
    ("name", "kind", "wanted"),
    [
        (f"hello.{SUFFIX}", "A", {"10.96.7.7"}),
        (f"HELLO.{SUFFIX.upper()}", "A", {"10.96.7.7"}),
        (f"hello.{SUFFIX}", "AAAA", {"fd00:10:96::77"}),
        (f"hello.{SUFFIX}", "MX", set()),
        (f"_http._tcp.hello.{SUFFIX}", "SRV", {f"0 100 80 hello.{SUFFIX}"}),
        (f"_ask._udp.hello.{SUFFIX}", "SRV", {f"0 100 53 hello.{SUFFIX}"}),
        (f"_http._tcp.hello.{SUFFIX}", "A", set()),
        (f"hello.{SUFFIX}", "SRV", {f"0 50 80 hello.{SUFFIX}", f"0 50 53 hello.{SUFFIX}"}),
        (f"db.{SUFFIX}", "A", READY),
        (f"db.{SUFFIX}", "AAAA", {"fd10:1::104"}),
        (f"db-0.db.{SUFFIX}", "A", {"10.244.1.100"}),
        (f"db-0.db.{SUFFIX}", "AAAA", set()),
        (f"10-244-1-102.db.{SUFFIX}", "A", {"10.244.1.102"}),
        (
            f"_http._tcp.db.{SUFFIX}",
            "SRV",
            {
                f"0 25 8080 {label}.db.{SUFFIX}"
                for label in ("db-0", "db-1", "10-244-1-102", "fd10-1--104")
            },
        ),
        (f"empty.{SUFFIX}", "A", set()),
        (f"away.{SUFFIX}", "A", {"example.org."}),
        (f"away.{SUFFIX}", "CNAME", {"example.org."}),
        (f"near.{SUFFIX}", "A", {f"hello.{SUFFIX}", "10.96.7.7"}),
        ("7.7.96.10.in-addr.arpa.", "PTR", {f"hello.{SUFFIX}"}),
        ("100.1.244.10.in-addr.arpa.", "PTR", {f"db-0.db.{SUFFIX}"}),
        ("ns.dns.cluster.local.", "A", {"10.96.0.10"}),
        ("dns-version.cluster.local.", "TXT", {'"1.1.0"'}),
        ("bare.svc.cluster.local.", "A", set()),
        ("svc.cluster.local.", "A", set()),
        ("cluster.local.", "A", set()),
    ],
)
def test_names_that_exist(name: str, kind: str, wanted: set[str]) -> None:
    assert ask(name, kind) == ("NOERROR", wanted)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"nothing.{SUFFIX}", "A"),
        ("hello.kube-system.svc.cluster.local.", "A"),
        ("hello.nowhere.svc.cluster.local.", "A"),
        ("nowhere.svc.cluster.local.", "A"),
        (f"db-9.db.{SUFFIX}", "A"),
        (f"10-96-7-7.hello.{SUFFIX}", "A"),
        (f"_http._udp.hello.{SUFFIX}", "SRV"),
        (f"a.b.c.hello.{SUFFIX}", "A"),
        (f"x.away.{SUFFIX}", "A"),
        ("hello.default.pod.cluster.local.", "A"),
        ("hello.", "A"),
        ("example.org.", "A"),
        ("9.9.96.10.in-addr.arpa.", "PTR"),
        ("103.1.244.10.in-addr.arpa.", "PTR"),
        ("cluster.local.", "PTR"),
    ],
)
def test_names_that_do_not_exist(name: str, kind: str) -> None:
    assert ask(name, kind) == ("NXDOMAIN", set())


def test_a_chain_without_an_end_is_a_failure() -> None:
    assert ask(f"loop.{SUFFIX}", "A") == ("SERVFAIL", set())


def test_a_target_of_srv_comes_with_its_addresses() -> None:
    name = dns.name.from_text(f"_http._tcp.hello.{SUFFIX}")
    found = records.answer(VIEW, name, dns.rdatatype.SRV)
    assert {str(each) for rrset in found.additional for each in rrset} == {
        "10.96.7.7",
        "fd00:10:96::77",
    }


def test_pods_search_their_own_namespace_first() -> None:
    assert resolv_conf("web").splitlines() == [
        "search web.svc.cluster.local svc.cluster.local cluster.local",
        "nameserver 10.96.0.10",
        "options ndots:5",
    ]


def exchange(name: str, kind: str, view: View = VIEW, *, udp: bool = True) -> dns.message.Message:
    query = dns.message.make_query(name, kind)
    return dns.message.from_wire(server.respond(view, query.to_wire(), udp))


def test_a_negative_response_has_the_zones_soa() -> None:
    response = exchange(f"nothing.{SUFFIX}", "A")
    assert response.rcode() == dns.rcode.NXDOMAIN
    assert response.flags & dns.flags.AA
    assert str(response.authority[0].name) == "cluster.local."


def many(count: int) -> View:
    pods = [endpoint(f"10.244.{1 + n // 250}.{n % 250}") for n in range(count)]
    return View(VIEW.services, {("default", "db-1"): endpoint_slice("db", *pods)}, {})


def test_a_large_response_is_cut_over_udp_and_whole_over_tcp() -> None:
    view = many(300)
    cut = exchange(f"db.{SUFFIX}", "A", view)
    assert cut.flags & dns.flags.TC
    assert len(cut.to_wire()) <= 512
    whole = exchange(f"db.{SUFFIX}", "A", view, udp=False)
    assert not whole.flags & dns.flags.TC
    assert len(whole.answer[0]) == 300


def test_clients_get_addresses_in_different_orders() -> None:
    first = {str(exchange(f"db.{SUFFIX}", "A").answer[0][0]) for _ in range(200)}
    assert first == READY


@given(st.binary(max_size=64), st.booleans())
def test_no_message_is_an_exception(wire: bytes, udp: bool) -> None:
    response = server.respond(VIEW, wire, udp)
    assert len(response) <= 512
    if response:
        assert response[:2] == wire[:2]
        assert response[2] & 0x80


@given(st.binary(min_size=1, max_size=40), st.integers(0, 39), st.integers(0, 255))
def test_no_question_is_an_exception(label: bytes, place: int, value: int) -> None:
    query = dns.message.make_query(dns.name.Name((label, *dns.name.from_text(SUFFIX))), "A")
    wire = bytearray(query.to_wire())
    wire[place % len(wire)] = value
    response = server.respond(VIEW, bytes(wire), udp=True)
    assert len(response) <= 512


@pytest.fixture
def port() -> Iterator[int]:
    """Serve on loopback; the server's own port needs rights that this test does without."""
    tcp = socket.create_server(("127.0.0.1", 0))
    tcp.setblocking(False)
    number: int = tcp.getsockname()[1]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", number))
        udp.setblocking(False)
        with reflector.in_thread(server.serve([tcp, udp], lambda: VIEW), "dns"):
            yield number


def test_both_transports_respond_and_a_connection_is_kept(port: int) -> None:
    query = dns.message.make_query(f"hello.{SUFFIX}", "A")
    over_udp = dns.query.udp(query, "127.0.0.1", port=port, timeout=60)
    assert str(over_udp.answer[0][0]) == "10.96.7.7"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        for _ in range(2):
            over_tcp = dns.query.tcp(query, "127.0.0.1", timeout=60, sock=connection)
            assert over_tcp.answer == over_udp.answer


def test_connections_are_bounded(port: int) -> None:
    async def count() -> int:
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(130)]
        closed = {asyncio.ensure_future(reader.read(1)) for reader, _ in pairs}
        done, waiting = await asyncio.wait(closed, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 2:
            more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            done |= more
        for task in waiting:
            task.cancel()
        for _, writer in pairs:
            writer.close()
        return len(done)

    assert asyncio.run(asyncio.wait_for(count(), 60)) == 2
