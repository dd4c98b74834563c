"""A restart changes nothing, in any order of events and any division into syncs."""

from __future__ import annotations

import errno
from itertools import islice, permutations
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.config.modes import ProxyMode
from pyproxy.config.settings import ListenAddress, NodePorts
from pyproxy.dataplane.interface import Drift, StepLimits
from pyproxy.errors import KernelError, TransientKernelError
from pyproxy.model.address import Address, Backend, Family, Port, Protocol, backend, parse_network
from pyproxy.model.events import Delete, Synced
from pyproxy.model.objects import (
    Endpoint,
    EndpointSlice,
    Kind,
    Node,
    ObjectName,
    Service,
    ServicePort,
    SlicePort,
    TrafficPolicy,
)
from pyproxy.model.service_bounds import ServiceBounds
from tests.agent.objects import NODE, Stage
from tests.builders import ip
from tests.examples import examples

BOUNDS = ServiceBounds(frontends=12, endpoints=40, source_ranges=8)
LIMITS = (
    StepLimits(20, large=20),
    StepLimits(200, large=20),
    StepLimits(200, large=60, divides=False),
)
NAMES = [
    ObjectName("default", "kubernetes"),
    *(ObjectName(space, name) for space in ("a", "b") for name in ("one", "two")),
]
V4, V6 = Family.IPV4, Family.IPV6
NODES = [ip("172.30.0.11"), ip("172.30.0.12"), ip("fd30::11")]
BROADCAST = ip("172.30.0.255")
FREE = [ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1")]
CLUSTER = {
    V4: [ip(f"10.96.0.{n}") for n in range(1, 5)],
    V6: [ip(f"fd96::{n}") for n in range(1, 5)],
}
ANY = [*NODES, BROADCAST, *FREE, *CLUSTER[V4], *CLUSTER[V6]]
PODS = {
    V4: [*(ip(f"10.244.1.{n}") for n in range(1, 8)), ip("172.30.0.12"), BROADCAST],
    V6: [ip(f"fd10::{n}") for n in range(1, 8)],
}
PORTS = st.sampled_from([Port(n) for n in (80, 443, 6443, 10250, 10256, 30080, 30081)])
PROTOCOLS = st.sampled_from([Protocol.TCP, Protocol.TCP, Protocol.UDP])
PORT_NAMES = ["", "a", "b", "c"]


@st.composite
def services(draw: st.DrawFn) -> Service:
    families = draw(st.sampled_from([(V4,), (V6,), (V4, V6), (V6, V4)]))
    addresses = [each for each in ANY if (V4 if len(each) == 4 else V6) in families]
    some = st.lists(st.sampled_from(addresses), max_size=5, unique=True).map(tuple)
    ports = []
    for name in PORT_NAMES[: draw(st.integers(1, 4))]:
        node_port = draw(st.sampled_from([0, 30080, 30081, 30082]))
        ports.append(ServicePort(name, draw(PROTOCOLS), draw(PORTS), Port(node_port)))
    unique = {(port.protocol, port.port): port for port in ports}
    return Service(
        name=draw(st.sampled_from(NAMES)),
        ports=tuple(unique.values()),
        cluster_ips=tuple(draw(st.sampled_from(CLUSTER[each])) for each in families),
        external_ips=draw(some),
        load_balancer_ips=draw(some),
        source_ranges=tuple(
            draw(
                st.lists(
                    st.sampled_from(
                        [parse_network(f"192.0.{n}.0/24") for n in range(5)]
                        + [parse_network("172.30.0.0/16")]
                    ),
                    max_size=4,
                    unique=True,
                )
            )
        ),
        internal_policy=draw(st.sampled_from(list(TrafficPolicy))),
        external_policy=draw(st.sampled_from(list(TrafficPolicy))),
        affinity_timeout=draw(st.sampled_from([0, 0, 60])),
        health_check_port=draw(st.sampled_from([Port(0), Port(30080), Port(30082)])),
        families=families,
        created=draw(st.sampled_from(["", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"])),
    )


@st.composite
def slices(draw: st.DrawFn) -> EndpointSlice:
    name, family = draw(st.sampled_from(NAMES)), draw(st.sampled_from([V4, V6]))
    ports = st.builds(
        SlicePort, st.sampled_from(PORT_NAMES), PROTOCOLS, st.sampled_from([Port(8080), Port(6443)])
    )
    endpoints = st.builds(
        Endpoint,
        st.sampled_from(PODS[family]),
        ready=st.booleans(),
        serving=st.booleans(),
        terminating=st.booleans(),
        node=st.sampled_from(["node-a", "node-b", ""]),
        hint_zones=st.sampled_from([(), ("zone-1",), ("zone-2",)]),
    )
    return EndpointSlice(
        ObjectName(name.namespace, f"{draw(st.sampled_from(['s', 't', 'u']))}"),
        name,
        family,
        tuple(draw(st.lists(ports, max_size=4, unique_by=lambda port: port.name))),
        tuple(draw(st.lists(endpoints, max_size=6))),
    )


deletions = st.one_of(
    st.builds(Delete, st.just(Kind.SERVICE), st.sampled_from(NAMES)),
    st.builds(
        lambda name, last: Delete(Kind.ENDPOINT_SLICE, ObjectName(name.namespace, last)),
        st.sampled_from(NAMES),
        st.sampled_from(["s", "t", "u"]),
    ),
)
nodes = st.builds(
    lambda zone, addresses: msgspec.structs.replace(NODE, zone=zone, addresses=tuple(addresses)),
    st.sampled_from(["zone-1", "zone-2"]),
    st.lists(st.sampled_from(NODES), max_size=3, unique=True),
)


class Moved(msgspec.Struct, frozen=True):
    """New addresses of the node's interfaces, and new API servers.

    Only with `is_notified` the agent knows at once. Otherwise it knows after a later notification,
    and until then a sync may read the addresses first.
    """

    local: tuple[Address, ...]
    servers: tuple[Backend, ...]
    is_notified: bool = True


moves = st.builds(
    Moved,
    st.lists(st.sampled_from([*NODES, FREE[1]]), max_size=3, unique=True).map(tuple),
    st.sampled_from([(), (backend(FREE[0], Port(6443)),)]),
)
any_moves = st.builds(msgspec.structs.replace, moves, is_notified=st.booleans())


class Listed(msgspec.Struct, frozen=True):
    """A new list of one kind; every object whose place has no bit in `kept` was deleted."""

    kind: Kind
    kept: int


class Wiped(msgspec.Struct, frozen=True):
    """Another program's deletion of the first rows of each set."""

    rows: int


lists = st.builds(
    Listed, st.sampled_from([Kind.SERVICE, Kind.ENDPOINT_SLICE]), st.integers(0, (1 << 16) - 1)
)
drifts = st.builds(Wiped, st.integers(1, 3))
SYNC = "sync"
Step = Service | EndpointSlice | Node | Delete | Moved | Listed | Wiped | KernelError | str
failures = st.just(TransientKernelError("EBUSY", errno.EBUSY))
upserts = st.one_of(services(), services(), slices(), nodes)
steps = st.lists(
    st.one_of(
        upserts,
        upserts,
        upserts,
        deletions,
        any_moves,
        lists,
        drifts,
        failures,
        st.just(SYNC),
        st.just(SYNC),
    ),
    max_size=25,
)


# A port of the agent's at one address, which is sometimes the node's and sometimes a node port's.
LISTENS = ListenAddress(NODES[1], 30081)
EVERYWHERE = NodePorts(primary=False, everywhere=True)


CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"node_ports": EVERYWHERE, "ui": LISTENS},
    {"node_ports": EVERYWHERE, "ui": LISTENS, "mode": ProxyMode.IPVS},
]


def stage_of(limits: StepLimits, **configuration: Any) -> Stage:
    stage = Stage(step_limits=limits, bounds=BOUNDS, **configuration)
    stage.broadcasts = (BROADCAST,)
    return stage


def follow(stage: Stage, step: Step) -> None:
    if isinstance(step, str):
        due = stage.agent.due()
        if due is not None:
            stage.clock.now = max(stage.clock(), due)
            stage.agent.sync()
    elif isinstance(step, KernelError):
        stage.dataplane.trouble.append(step)
    elif isinstance(step, Moved):
        stage.local_addresses, stage.api_servers = step.local, step.servers
        if step.is_notified:
            stage.agent.addresses_changed()
    elif isinstance(step, Delete):
        stage.agent.handle_event(step)
    elif isinstance(step, Listed):
        state = stage.agent.cluster_state
        known = sorted(state.services if step.kind is Kind.SERVICE else state.slices)
        names = frozenset(name for at, name in enumerate(known) if step.kept >> at & 1)
        stage.agent.handle_event(Synced(step.kind, names))
    elif isinstance(step, Wiped):
        kernel = stage.dataplane.kernel
        stage.dataplane.kernel = {
            name: dict(islice(rows.items(), step.rows, None)) for name, rows in kernel.items()
        }
        stage.agent.drifted(Drift("another program"))
    else:
        stage.handle_event(step)


def restarted(stage: Stage, **configuration: Any) -> Stage:
    """Return an agent that reads the same objects at once, in the order of their names."""
    fresh = stage_of(stage.dataplane.step_limits, **configuration)
    fresh.local_addresses, fresh.api_servers = stage.local_addresses, stage.api_servers
    state = stage.agent.cluster_state
    fresh.node = state.node or NODE
    fresh.begin(
        *sorted(state.services.values(), key=lambda each: each.name),
        *sorted(state.slices.values(), key=lambda each: each.name),
    )
    fresh.settle()
    return fresh


@given(steps, st.sampled_from(LIMITS), st.sampled_from(CONFIGURATIONS))
@settings(max_examples=examples(60), deadline=None)
def test_a_restart_changes_nothing(
    steps: list[Step], limits: StepLimits, configuration: dict[str, Any]
) -> None:
    stage = stage_of(limits, **configuration)
    stage.begin()
    for step in steps:
        follow(stage, step)
    # The notification of moves without one.
    stage.agent.addresses_changed()
    stage.settle()
    fresh = restarted(stage, **configuration)
    assert stage.recorder.programmed == fresh.recorder.programmed
    assert stage.dataplane.kernel == fresh.dataplane.kernel
    assert {*stage.agent.problems()} == {*fresh.agent.problems()}
    assert not [each for each in stage.agent.problems() if "a bug" in each.message]


@given(
    st.lists(services(), min_size=1, max_size=4),
    st.lists(slices(), max_size=2),
    st.lists(moves, min_size=1, max_size=3),
    st.sampled_from(CONFIGURATIONS),
)
@settings(max_examples=examples(150), deadline=None)
def test_addresses_that_come_and_go_leave_what_a_restart_makes(
    objects: list[Service],
    slices: list[EndpointSlice],
    moves: list[Moved],
    configuration: dict[str, Any],
) -> None:
    """Only the Services that the addresses concern are routed again."""
    stage = stage_of(LIMITS[1], **configuration)
    stage.local_addresses = tuple(NODES[:1])
    stage.begin(*{each.name: each for each in objects}.values(), *slices)
    stage.settle()
    for move in moves:
        follow(stage, move)
        stage.settle()
    fresh = restarted(stage, **configuration)
    assert stage.recorder.programmed == fresh.recorder.programmed
    assert stage.dataplane.kernel == fresh.dataplane.kernel
    assert {*stage.agent.problems()} == {*fresh.agent.problems()}


def test_node_addresses_in_another_order_route_nothing_differently() -> None:
    stage = stage_of(LIMITS[1], **CONFIGURATIONS[2])
    stage.local_addresses = (*NODES,)
    node_port = (ServicePort("", Protocol.TCP, Port(80), Port(30080)),)
    stage.begin(msgspec.structs.replace(service(NAMES[0], 80, CLUSTER[V4][0]), ports=node_port))
    before = stage.recorder.programmed[NAMES[0]]
    assert len(before.ports[0].frontends) == 3
    for addresses in permutations(NODES):
        follow(stage, Moved(addresses, ()))
        stage.settle()
        assert stage.recorder.programmed[NAMES[0]] == before
        assert restarted(stage, **CONFIGURATIONS[2]).recorder.programmed[NAMES[0]] == before


def service(name: ObjectName, port: int, cluster_ip: Address, **fields: Any) -> Service:
    ports = (ServicePort("", Protocol.TCP, Port(port)),)
    return Service(name, ports, (cluster_ip,), families=(V4,), **fields)


def test_services_that_free_frontends_for_each_other_in_one_step() -> None:
    """The second one is routed because of the first, and frees an address of the first."""
    (one, other, last), free = CLUSTER[V4][:3], FREE[0]
    stage = stage_of(LIMITS[0])
    stage.begin(
        service(NAMES[1], 80, one, load_balancer_ips=(free,)),
        service(NAMES[3], 80, other, external_ips=(free,)),
    )
    stage.handle_event(
        service(NAMES[1], 443, one, load_balancer_ips=(other,)),
        service(NAMES[3], 80, last, external_ips=(free,)),
    )
    stage.settle()
    (port,) = stage.recorder.programmed[NAMES[1]].ports
    assert [each.address for each in port.frontends] == [one, other]
    assert stage.agent.problems() == ()


def test_a_frontend_that_moves_twice_in_one_step() -> None:
    """The Service that gains it at first, and loses it again, is written as it was."""
    free = FREE[0]
    first, waiting, last = (
        service(name, 80, cluster_ip, external_ips=(free,), created=created)
        for name, cluster_ip, created in zip(NAMES[1:], CLUSTER[V4], ("1", "3", "2"), strict=False)
    )
    stage = Stage()
    stage.begin(first, waiting)
    stage.handle_event(msgspec.structs.replace(first, external_ips=()), last)
    stage.settle()
    fresh = restarted(stage)
    assert stage.recorder.programmed == fresh.recorder.programmed
    assert stage.dataplane.kernel == fresh.dataplane.kernel


def test_a_failed_step_is_made_again_as_a_whole() -> None:
    """The Service that gets a frontend fills a step, so it would come before the old owner."""
    address, other = CLUSTER[V4][:2]
    ports = tuple(ServicePort(f"p{n}", Protocol.TCP, Port(80 + n)) for n in range(12))
    large = msgspec.structs.replace(service(NAMES[1], 80, address), ports=ports)
    stage = stage_of(LIMITS[0])
    stage.begin(service(NAMES[0], 80, address))
    stage.dataplane.trouble.append(TransientKernelError("EBUSY", errno.EBUSY))
    stage.handle_event(service(NAMES[0], 80, other), large)
    # The table asserts that a frontend never has two owners.
    stage.settle()
    assert stage.dataplane.kernel == restarted(stage).dataplane.kernel


def test_addresses_that_a_sync_reads_before_their_notification() -> None:
    """Another program listens at the second address of the node port, which is divided then."""
    stage = stage_of(LIMITS[1], **CONFIGURATIONS[1])
    stage.local_addresses = (NODES[0],)
    node_port = (ServicePort("", Protocol.TCP, Port(80), Port(LISTENS.port)),)
    stage.begin(msgspec.structs.replace(service(NAMES[1], 80, CLUSTER[V4][0]), ports=node_port))
    stage.dataplane.trouble.append(TransientKernelError("EBUSY", errno.EBUSY))
    follow(stage, Moved((NODES[0], FREE[1]), ()))
    follow(stage, SYNC)
    follow(stage, Moved(tuple(NODES[:2]), (), is_notified=False))
    follow(stage, SYNC)
    stage.agent.addresses_changed()
    stage.settle()
    fresh = restarted(stage, **CONFIGURATIONS[1])
    assert stage.recorder.programmed == fresh.recorder.programmed
    assert {*stage.agent.problems()} == {*fresh.agent.problems()}
