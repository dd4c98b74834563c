"""Established and new connections through a Service: without offload, with it, and beside others.

The client and the server are pods of one node. In the tests' virtual machine the clock counts
instructions, one a nanosecond, so the figures there are the same on a busy machine.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from pyproxy_lab.bench.figures import heading
from pyproxy_lab.bench.place import CLIENT_ADDRESS, Place
from pyproxy_lab.bench.shape import cluster_ip, endpoint_slice, node, pod_ip, service
from pyproxy_lab.namespace import LabError, Namespace
from pyproxy_lab.process import pipes

from bench import fast_path_ends as ends
from bench.inside import inside, lists_of
from bench.kube_proxy_rules import kube_proxy_rules
from pyproxy.config.settings import FlowOffload

RUNS = 3
_ROUND_TRIPS = 2000
_CONNECTIONS = 300
_FIRST_PORT, _PORTS, _TURNS = 10_000, 1000, 50
_ACCOUNTING = "netfilter/nf_conntrack_acct"

ENDS = "the ends alone, over loopback"
DIRECT = "pod directly, no rules"
BESIDE = "pod directly, rules of pyproxy"
KUBE_PROXY = "Service, rules of kube-proxy"
SLOW = "Service, --flow-offload=none"
FAST = "Service, --flow-offload=services"


class Figures(msgspec.Struct, frozen=True):
    """Seconds of one round trip, of one bulk transfer and of one new connection."""

    round_trip: float
    bulk: float
    connection: float


class Comparison(msgspec.Struct, frozen=True):
    """How often as fast one way is as another one, and the least that it should be."""

    what: str
    value: float
    least: float

    @property
    def is_met(self) -> bool:
        """Whether the target is met."""
        return self.value >= self.least


def print_fast_path(place: Place, runs: int = RUNS) -> bool:
    """Measure all ways by turns and print them; return whether all targets are met."""
    found: dict[str, list[Figures]] = {way: [] for way in _WAYS}
    with _server(place.pods), _server(place.client):
        for run in range(runs):
            # In alternating order, so that no way always follows the same one.
            for turn, way in enumerate(list(_WAYS)[:: -1 if run % 2 else 1]):
                _use_ports(place.client, run * len(_WAYS) + turn)
                found[way].append(_measure(place, way))
    medians = {way: median(figures) for way, figures in found.items()}
    heading(f"One client, one server, one node; medians of {runs} runs by turns")
    for line in table(medians):
        print(line, flush=True)
    heading("Rates by rates")
    compared = comparisons(medians)
    for each in compared:
        missed = "" if each.is_met else "  MISSED"
        print(f"  {each.what:<66} {each.value:.3f} (at least {each.least:.2f}){missed}")
    return all(each.is_met for each in compared)


def median(figures: Sequence[Figures]) -> Figures:
    """Return the medians of several runs."""
    return Figures(
        *(
            statistics.median(getattr(each, name) for each in figures)
            for name in Figures.__struct_fields__
        )
    )


def table(medians: Mapping[str, Figures]) -> Iterator[str]:
    """Yield the lines of the table of all ways."""
    head = ("round trips/s", "ns each", "beyond ends", "bulk MB/s", "connections/s", "ns each")
    yield f"  {'':<36}" + "".join(f"{each:>15}" for each in head)
    ends_alone = medians[ENDS].round_trip
    for way, each in medians.items():
        values = (
            f"{1 / each.round_trip:,.0f}",
            f"{each.round_trip * 1e9:,.0f}",
            f"{(each.round_trip - ends_alone) * 1e9:,.0f}",
            f"{ends.BULK / each.bulk / 1e6:,.0f}",
            f"{1 / each.connection:,.0f}",
            f"{each.connection * 1e9:,.0f}",
        )
        yield f"  {way:<36}" + "".join(f"{value:>15}" for value in values)


def comparisons(medians: Mapping[str, Figures]) -> list[Comparison]:
    """Return the comparisons that have a target."""
    fast, slow, direct = (medians[way] for way in (FAST, SLOW, DIRECT))
    return [
        Comparison("round trips, offload by none", slow.round_trip / fast.round_trip, 1.15),
        Comparison("round trips, offload by pod directly", direct.round_trip / fast.round_trip, 1),
        Comparison("bulk, offload by none", slow.bulk / fast.bulk, 1.15),
        Comparison("bulk, offload by pod directly", direct.bulk / fast.bulk, 1),
        Comparison("new connections, offload by none", slow.connection / fast.connection, 0.97),
    ]


class _Way(msgspec.Struct, frozen=True):
    """The address that the client connects to, and the rules on the node meanwhile."""

    address: str
    rules: Callable[[Place], AbstractContextManager[Callable[[], int]]]


def _use_ports(client: Namespace, turn: int) -> None:
    """Let connections come from other ports than in the turns before.

    The server keeps those in TIME_WAIT for a minute, and might reject them.
    """
    first = _FIRST_PORT + turn % _TURNS * _PORTS
    path = Path("/proc/sys/net/ipv4/ip_local_port_range")
    client.call(lambda: path.write_text(f"{first} {first + _PORTS - 1}"))


def _measure(place: Place, name: str) -> Figures:
    way = _WAYS[name]
    place.node.run(["conntrack", "-F"])
    # As the agent does, which is not whole here.
    place.node.sysctl({_ACCOUNTING: int(name in (FAST, BESIDE))})
    call = place.client.call
    with way.rules(place) as added:
        round_trip = call(partial(ends.round_trips, way.address, _ROUND_TRIPS)) / _ROUND_TRIPS
        transfer = call(partial(ends.bulk, way.address))
        if name == FAST and added() < 2:
            raise LabError("the connections were not offloaded")
        connection = call(partial(ends.new_connections, way.address, _CONNECTIONS)) / _CONNECTIONS
    return Figures(round_trip, transfer, connection)


@contextmanager
def _no_rules(place: Place) -> Iterator[Callable[[], int]]:  # noqa: ARG001
    yield lambda: 0


@contextmanager
def _pyproxy(offload: FlowOffload, place: Place) -> Iterator[Callable[[], int]]:  # noqa: ARG001
    with inside(flow_offload=offload) as agent:
        agent.handle_event(lists_of(_objects()))
        agent.agent.sync()

        def added() -> int:
            state = agent.dataplane.flow_offload()
            if state is not None and state.inactive:
                raise LabError(f"flow offload is not active: {state.inactive}")
            return state.added if state is not None else 0

        yield added


@contextmanager
def _kube_proxy(place: Place) -> Iterator[Callable[[], int]]:
    rules = kube_proxy_rules(cluster_ip(0), pod_ip(0), ends.PORT)
    place.node.run(["nft", "-f", "-"], text=rules)
    try:
        yield lambda: 0
    finally:
        place.node.run(["nft", "delete table ip kube-proxy"])


def _objects() -> list[dict[str, Any]]:
    made, of = service(0), endpoint_slice(0, [0])
    made["spec"]["ports"][0]["port"] = made["spec"]["ports"][0]["targetPort"] = ends.PORT
    of["ports"][0]["port"] = ends.PORT
    return [node(), made, of]


@contextmanager
def _server(namespace: Namespace) -> Iterator[None]:
    command = [sys.executable, "-m", ends.__name__]
    with ExitStack() as stack:
        server = namespace.start(command, stdin=subprocess.PIPE, output=subprocess.PIPE)
        stack.enter_context(server)
        stdin, stdout = pipes(server)
        stack.callback(stdin.close)
        if stdout.readline() != b"ready\n":
            raise LabError("the server has not started")
        yield


_WAYS: Mapping[str, _Way] = {
    ENDS: _Way(CLIENT_ADDRESS, _no_rules),
    DIRECT: _Way(pod_ip(0), _no_rules),
    BESIDE: _Way(pod_ip(0), partial(_pyproxy, FlowOffload.SERVICES)),
    KUBE_PROXY: _Way(cluster_ip(0), _kube_proxy),
    SLOW: _Way(cluster_ip(0), partial(_pyproxy, FlowOffload.NONE)),
    FAST: _Way(cluster_ip(0), partial(_pyproxy, FlowOffload.SERVICES)),
}
