"""`pyproxy bench fleet` with few clients: counts are exact."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from pyproxy_lab.bench.fleet import report
from pyproxy_lab.bench.fleet.counts import Counts
from pyproxy_lab.bench.fleet.fleets import Client
from pyproxy_lab.bench.fleet.scenarios import Bench, Plan, Scenario
from pyproxy_lab.bench.shape import Size

from pyproxy.cli import main

NODES, SERVICES = 2, 12
PROTOBUF = "application/vnd.kubernetes.protobuf"
PLAN = Plan(NODES, Size(SERVICES, 3), pods=100, away=0.05, hour=6.0, patience=300.0)
WATCHED = ("endpointslices", "nodes", "services")


All = dict[Client, dict[Scenario, Counts]]


@pytest.fixture(scope="module")
def counted() -> All:
    """Count both clients at the same time, because most of the time they wait."""
    clients = (Client.PYPROXY, Client.KUBE_PROXY)

    def count(client: Client) -> dict[Scenario, Counts]:
        return Bench(PLAN, client, lambda step: None).run()

    with ThreadPoolExecutor() as pool:
        return dict(zip(clients, pool.map(count, clients), strict=True))


def requests(kind: str) -> dict[str, int]:
    return {f"{kind} {each}": NODES for each in WATCHED}


def encodings(counts: Counts) -> dict[str, int]:
    """Return the encodings without bookmarks, whose number depends on the time that passes."""
    return {key: n for key, n in counts.encodings.items() if not key.endswith("bookmark")}


@pytest.mark.parametrize("client", [Client.PYPROXY, Client.KUBE_PROXY])
def test_counts(counted: All, client: Client) -> None:
    found = counted[client]
    start = found[Scenario.START]
    assert start.requests == requests("stream") | {"create events": NODES}
    # Services with the one of the API server, their slices, and the Node.
    objects = SERVICES + 1 + SERVICES + 1
    assert encodings(start) == {f"{PROTOBUF} initial event": NODES * objects}
    # One change for each step, and the change that ends each scenario.
    assert found[Scenario.ROLLOUT].requests == {}
    assert encodings(found[Scenario.ROLLOUT]) == {f"{PROTOBUF} change": PLAN.steps + 1}
    restart = found[Scenario.RESTART]
    assert restart.requests == requests("watch")
    changes = {f"{PROTOBUF} change", f"{PROTOBUF} missed change"}
    assert encodings(restart).keys() <= changes
    assert 1 <= sum(encodings(restart).values()) <= NODES + 1


def test_pyproxy_lists_again_after_410_alone(counted: All) -> None:
    found = counted[Client.PYPROXY]
    assert found[Scenario.RESTART_NEW].requests == requests("watch") | requests("stream")
    assert found[Scenario.PARTITION].requests == requests("watch")


def test_kube_proxy_lists_again_after_a_partition(counted: All) -> None:
    found = counted[Client.KUBE_PROXY]
    assert found[Scenario.RESTART_NEW].requests == requests("watch") | requests("stream")
    assert found[Scenario.PARTITION].requests == requests("stream")


def test_pyproxy_costs_no_more_than_kube_proxy(counted: All) -> None:
    ours, theirs = counted[Client.PYPROXY], counted[Client.KUBE_PROXY]
    for scenario in (Scenario.START, Scenario.ROLLOUT):
        assert ours[scenario].all_requests <= theirs[scenario].all_requests
        assert encodings(ours[scenario]) == encodings(theirs[scenario])
        # Versions and ports have other numbers of digits, and chunks may hold several events.
        assert ours[scenario].bytes <= 1.02 * theirs[scenario].bytes


@pytest.mark.parametrize(("client", "shortest"), [(Client.PYPROXY, 1800), (Client.KUBE_PROXY, 300)])
def test_an_idle_watch_stays_open_up_to_its_timeout(
    counted: All, client: Client, shortest: int
) -> None:
    hour = counted[client][Scenario.HOUR]
    # No lists, and no more watches than the shortest timeout allows.
    assert hour.requests.keys() <= requests("watch").keys()
    for each in WATCHED:
        assert hour.requests.get(f"watch {each}", 0) <= NODES * (3600 // shortest + 1)
    # The status of each Node is written every five minutes, and one watch selects it.
    assert 1 <= sum(encodings(hour).values()) <= NODES * 12


def test_the_arithmetic_for_larger_fleets() -> None:
    counts = Counts(
        received=3_000,
        sent=1_000,
        requests={"stream services": 4, "watch nodes": 2},
        encodings={f"{PROTOBUF} initial event": 20, f"{PROTOBUF} change": 7},
    )
    node = report.per_node(counts, 2)
    assert (node.bytes_received, node.bytes_sent, node.requests, node.lists) == (1500, 500, 3, 2)
    assert (node.own_encodings, node.shared_encodings) == (10, 7)
    plan = msgspec.structs.replace(PLAN, nodes=2)
    results = {Client.PYPROXY: {Scenario.ROLLOUT: counts, Scenario.HOUR: counts}}
    text = report.as_text(plan, results)
    assert "2 kB x 5,000 = 10 MB; 3.0 x 5,000 = 15,000 requests; 50,007 encodings" in text
    # In an hour each Node has changes of its own.
    assert "15,000 requests; 67,500 encodings" in text
    document = msgspec.json.decode(report.as_json(plan, results))
    rollout = document["clients"]["pyproxy"]["rollout"]
    assert rollout["fleets"]["5000"] == {"bytes": 1e7, "requests": 15_000, "encodings": 50_007}


@pytest.mark.parametrize(
    ("size", "text"), [(999, "999 B"), (1_000, "1 kB"), (17_460_000, "17.5 MB"), (2.5e12, "2.5 TB")]
)
def test_amounts(size: float, text: str) -> None:
    assert report.amount(size) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--nodes 0", "--nodes 0: give a number above 0"),
        ("--hour -1", "--hour -1: give a number of at least 0"),
        ("--pods 30", "--pods 30: give a multiple of 25"),
        ("--services 9999 --endpoints 999", "9,999 services x 999 is more than 524,288 endpoints"),
        ("--output /proc/self/stat", "--output /proc/self/stat: File exists"),
    ],
)
def test_a_usage_error_is_one_line(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "fleet", *arguments.split()]) == 2
    output = capsys.readouterr().err
    assert message in output
    assert output.count("\n") == 1
