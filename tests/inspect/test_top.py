"""`pyproxy top`: connection counters of the kernel, and their rates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from pyproxy_lab.probe import probe

from pyproxy.commands.top import COMMAND, sample_of
from pyproxy.config.command_line import Parser
from pyproxy.dataplane.connections import Counted, Totals
from pyproxy.dataplane.nftables.counters import CounterReader
from pyproxy.model.destination import parse_destination
from tests.agent.live import endpoint_slice, service
from tests.inspect.node import SITE, InspectedNode, inspected_node

WEB, DNS = "10.96.0.10", "10.96.0.11"


UNNAMED = {"protocol": "TCP", "port": 53}
OBJECTS = (
    service("web", WEB, node_port=30080),
    endpoint_slice("web", ["10.244.1.11", "10.244.2.11"]),
    service("dns", DNS, ports=[UNNAMED]),
    endpoint_slice("dns", ["10.244.2.12"]) | {"ports": [UNNAMED | {"port": 8080}]},
)


@pytest.fixture(scope="module")
def counting() -> Iterator[InspectedNode]:
    with inspected_node("--endpoint-counters") as node:
        node.create(*OBJECTS)
        node.until(lambda: connect(node, WEB, 80), "the Service web responds")
        node.until(lambda: connect(node, DNS, 53), "the Service dns responds")
        yield node


def connect(node: InspectedNode, address: str, port: int, times: int = 1) -> int:
    """Connect from a pod; return the number of responses."""
    target = parse_destination(f"{address}:{port}")
    connected = partial(probe, target, tries=times, timeout=10.0)
    return sum(node.cluster.network.namespace("a2").call(connected).reached.values())


@pytest.mark.packets
def test_connections_are_counted_by_service_and_by_endpoint(counting: InspectedNode) -> None:
    namespace = counting.cluster.network.namespace(SITE)
    reader = namespace.call(CounterReader)
    reader.require()
    before = reader.services()
    endpoints_before = reader.endpoints(before, everything=False)
    # Both endpoints get one of these, but for one time in 10^9.
    assert connect(counting, WEB, 80, 20) == 20
    assert connect(counting, "172.30.0.11", 30080, 12) == 12
    assert connect(counting, DNS, 53, 3) == 3
    after = reader.services()
    endpoints = reader.endpoints(after, everything=False)
    reader.close()
    assert after.since(before) == {Counted("shop/web:http"): 32, Counted("shop/dns"): 3}
    gained = endpoints.since(endpoints_before)
    assert gained.keys() == {
        Counted("shop/web:http", "10.244.1.11:8080"),
        Counted("shop/web:http", "10.244.2.11:8080"),
        Counted("shop/dns", "10.244.2.12:8080"),
    }
    assert gained[Counted("shop/dns", "10.244.2.12:8080")] == 3
    assert sum(gained.values()) == 35


@pytest.mark.packets
@pytest.mark.parametrize("wanted", ["shop/web", "shop/web:http", "shop/", ""])
def test_a_few_endpoints_are_read_one_by_one_with_the_same_result(
    counting: InspectedNode, wanted: str
) -> None:
    reader = counting.cluster.network.namespace(SITE).call(CounterReader)
    services = reader.services(wanted)
    few = reader.endpoints(services, everything=False)
    assert few == reader.endpoints(services, everything=True)
    assert {owner.service for owner in few.owners.values()} == (
        {"shop/web:http"} if "web" in wanted else {"shop/web:http", "shop/dns"}
    )
    reader.close()


@pytest.mark.packets
def test_it_prints_tables_and_json(counting: InspectedNode) -> None:
    printed = counting.run(
        "top", "--once", "--interval", "0.1", "--sort", "name", "-o", "json"
    ).json
    assert [row["service"] for row in printed["rows"]] == ["shop/dns", "shop/web:http"]
    assert all(row["total"] >= 1 for row in printed["rows"])
    words = ("top", "shop/dns", "--endpoints", "--iterations", "2", "--interval", "0.1")
    lines = counting.run(*words).out.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("shop/")] == [
        ["shop/dns", "10.244.2.12:8080"]
    ] * 2
    assert sum("new connections per second" in line for line in lines) == 2
    assert not counting.run("top", "nowhere", "--once", "--interval", "0.1", "-o", "json").json[
        "rows"
    ]


@pytest.mark.kernel
def test_without_counters_the_error_names_the_flag(node: InspectedNode) -> None:
    result = node.run("top", "--once")
    assert result.status == 2
    assert "--endpoint-counters" in result.err


SERVICE, OTHER = ("services4", b"1"), ("services4", b"2")


@pytest.mark.parametrize(
    ("before", "after", "gained"),
    [
        ({}, {}, {}),
        ({}, {SERVICE: 5}, {"a": 5}),
        ({SERVICE: 5}, {SERVICE: 5}, {"a": 0}),
        ({SERVICE: 5}, {SERVICE: 9}, {"a": 4}),
        ({SERVICE: 5}, {SERVICE: 2}, {"a": 2}),
        ({SERVICE: 5}, {}, {}),
        ({SERVICE: 5, OTHER: 1}, {SERVICE: 6, OTHER: 3}, {"a": 3}),
    ],
    ids=str,
)
def test_a_recreated_element_counts_from_zero(
    before: dict[tuple[str, bytes], int],
    after: dict[tuple[str, bytes], int],
    gained: dict[str, int],
) -> None:
    owners = dict.fromkeys((SERVICE, OTHER), Counted("a"))
    first, second = Totals(before, owners), Totals(after, owners)
    assert second.since(first) == {Counted(name): number for name, number in gained.items()}


@pytest.mark.parametrize(
    ("flags", "order"),
    [
        ((), ["b", "a", "c"]),
        (("--sort", "total"), ["c", "b", "a"]),
        (("--sort", "name"), ["a", "b", "c"]),
        (("--rows", "1"), ["b"]),
        (("--rows", "0"), ["b", "a", "c"]),
    ],
)
def test_rows_are_sorted_and_limited(flags: tuple[str, ...], order: list[str]) -> None:
    owners = {("services4", name.encode()): Counted(name) for name in "abc"}
    now = dict(zip(owners, (10, 20, 30), strict=True))
    before = dict(zip(owners, (5, 10, 30), strict=True))
    parser = Parser("top")
    COMMAND.declare(parser, "")
    namespace = parser.parse_args(flags)
    sample = sample_of(Totals(before, owners), Totals(now, owners), 5.0, 0.1, namespace)
    assert [row.service for row in sample.rows] == order
    assert sample.per_second == 3.0
    assert sample.total_rows == 3
    assert {row.service: row.per_second for row in sample.rows}.get("b", 2.0) == 2.0
