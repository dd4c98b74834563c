"""`pyproxy top`: connection counters of the kernel, offloaded flows, and their rates."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from functools import partial

import pytest
from pyproxy_lab.probe import probe

from pyproxy.cli import main
from pyproxy.commands import printer, top_offloaded
from pyproxy.commands.top import COMMAND, sample_of
from pyproxy.config.command_line import Parser
from pyproxy.dataplane.connections import Counted, Totals
from pyproxy.dataplane.nftables.counters import CounterReader
from pyproxy.dataplane.nftables.offloaded_flows import OTHER, Load, Loads
from pyproxy.model.destination import parse_destination
from tests.agent.live import endpoint_slice, service
from tests.inspect.node import SITE, InspectedNode, inspected_node
from tests.namespaces import empty_namespace

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


ONCE = ("top", "--offloaded", "--once", "--interval", "0.1")
OFFLOADING = ("--flow-offload", "services")


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ((), "--offloaded: the agent offloads no connections: start it with --flow-offload=ser"),
        (
            ("--proxy-mode", "ipvs", *OFFLOADING),
            "--offloaded: proxy mode ipvs has no fast path: start the agent with "
            "--proxy-mode=nftables and --flow-offload=services",
        ),
        (OFFLOADING, "the kernel holds no table inet pyproxy: run top --offloaded on a node"),
    ],
)
def test_it_is_an_error_where_there_is_no_fast_path(
    flags: tuple[str, ...], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with empty_namespace("top") as netns:
        assert netns.call(partial(main, [*ONCE, "--no-agent", *flags])) == 2
    assert capsys.readouterr().err.startswith(f"pyproxy: {error}")


@pytest.mark.kernel
def test_the_error_is_that_of_the_agents_flags(node: InspectedNode) -> None:
    result = node.command(*ONCE, *OFFLOADING)
    assert result.status == 2
    assert "--offloaded: the agent offloads no connections" in result.err


@pytest.mark.kernel
def test_without_flows_there_are_no_rows(node: InspectedNode) -> None:
    # Connections of the node are in conntrack, and none of them is on a fast path.
    result = node.without_agent(*ONCE, *OFFLOADING, "-o", "json").json
    assert (result["flows"], result["rows"], result["totalRows"]) == (0, [], 0)
    printed = node.without_agent(*ONCE, *OFFLOADING).out
    assert printed.startswith("0 offloaded flows; 0.0 packets and 0 bytes per second over")


WEB_LOAD = Load(2, 3000, 4_000_000, 1000, 500_000)
DNS_LOAD = Load(1, 9000, 9_000_000, 10, 1000)
LOADS = Loads({Counted("shop/web:http"): WEB_LOAD, Counted(OTHER): DNS_LOAD}, 1)


@pytest.mark.parametrize(
    ("flags", "order"),
    [
        ((), ["shop/web:http", "other"]),
        (("--sort", "total"), ["other", "shop/web:http"]),
        (("--sort", "name"), ["other", "shop/web:http"]),
        (("--rows", "1"), ["shop/web:http"]),
    ],
)
def test_rows_of_offloaded_flows_are_sorted_and_limited(
    flags: tuple[str, ...], order: list[str]
) -> None:
    sample = top_offloaded.sample_of(LOADS, 2.0, 0.001, parsed(*flags))
    assert [row.service for row in sample.rows] == order
    assert (sample.flows, sample.unmeasured, sample.total_rows) == (3, 1, 2)
    assert (sample.packets_per_second, sample.bytes_per_second) == (505.0, 250_500.0)
    web = next(row for row in sample.rows if row.service != OTHER)
    assert (web.flows, web.packets, web.bytes) == (2, 3000, 4_000_000)
    assert (web.packets_per_second, web.bytes_per_second) == (500.0, 250_000.0)


@pytest.mark.parametrize("endpoint", ["", "10.244.1.11:8080"])
def test_offloaded_flows_are_printed(endpoint: str) -> None:
    loads = Loads({Counted("shop/web:http", endpoint): WEB_LOAD, Counted(OTHER): DNS_LOAD}, 1)
    sample = top_offloaded.sample_of(loads, 2.0, 0.001, parsed())
    out = io.StringIO()
    printer.show(out, top_offloaded.show(sample))
    first, titles, web, other = out.getvalue().splitlines()
    noun = "endpoints" if endpoint else "services"
    assert first == (
        "3 offloaded flows (1 not measured yet); 505.0 packets and 250,500 bytes per second over "
        f"2.0 s; showing 2 of 2 {noun}; read in 1.0 ms"
    )
    columns = ["SERVICE", *(["ENDPOINT"] if endpoint else [])]
    assert titles.split() == [*columns, "FLOWS", "PACKETS/S", "BYTES/S", "PACKETS", "BYTES"]
    place = [endpoint] if endpoint else []
    assert web.split() == ["shop/web:http", *place, "2", "500.0", "250,000", "3,000", "4,000,000"]
    assert other.split() == ["other", "1", "5.0", "500", "9,000", "9,000,000"]


def parsed(*flags: str) -> argparse.Namespace:
    parser = Parser("top")
    COMMAND.declare(parser, "")
    return parser.parse_args(flags)


SERVICE, ANOTHER = ("services4", b"1"), ("services4", b"2")


@pytest.mark.parametrize(
    ("before", "after", "gained"),
    [
        ({}, {}, {}),
        ({}, {SERVICE: 5}, {"a": 5}),
        ({SERVICE: 5}, {SERVICE: 5}, {"a": 0}),
        ({SERVICE: 5}, {SERVICE: 9}, {"a": 4}),
        ({SERVICE: 5}, {SERVICE: 2}, {"a": 2}),
        ({SERVICE: 5}, {}, {}),
        ({SERVICE: 5, ANOTHER: 1}, {SERVICE: 6, ANOTHER: 3}, {"a": 3}),
    ],
    ids=str,
)
def test_a_recreated_element_counts_from_zero(
    before: dict[tuple[str, bytes], int],
    after: dict[tuple[str, bytes], int],
    gained: dict[str, int],
) -> None:
    owners = dict.fromkeys((SERVICE, ANOTHER), Counted("a"))
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
    sample = sample_of(Totals(before, owners), Totals(now, owners), 5.0, 0.1, parsed(*flags))
    assert [row.service for row in sample.rows] == order
    assert sample.per_second == 3.0
    assert sample.total_rows == 3
    assert {row.service: row.per_second for row in sample.rows}.get("b", 2.0) == 2.0
