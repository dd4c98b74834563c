"""The dataplane on a real kernel: after any history, the table equals one compiled from nothing."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import Changes, NodeRouting
from pyproxy.dataplane.nft import schema as nft
from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nft.schema import Rows, SetKind, Table
from pyproxy.dataplane.nftables import schema
from pyproxy.dataplane.nftables.base_rules import NftablesOptions
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.dataplane.nftables.offload_devices import DeviceChoice, OffloadDevices
from pyproxy.dataplane.nftables.readback import read_learned, read_table
from pyproxy.errors import RejectedError, StaleStateError
from pyproxy.model.address import (
    Backend,
    Family,
    Network,
    Port,
    Protocol,
    parse_address,
    parse_network,
)
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import Value, add_elements
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use
from tests.dataplane.nftables.scenes import Scene, compiled, scenes
from tests.examples import examples

pytestmark = pytest.mark.kernel

OPTIONS = NftablesOptions()


@contextmanager
def programming(
    namespace: Namespace, options: NftablesOptions = OPTIONS, offload: DeviceChoice | None = None
) -> Iterator[NftablesDataplane]:
    """A dataplane that starts on an empty kernel."""
    made = namespace.call(
        lambda: NftablesDataplane(options, offload=OffloadDevices(offload) if offload else None)
    )
    made.cleanup()
    try:
        yield made
    finally:
        made.close()


def held(namespace: Namespace) -> Table:
    netlink = namespace.call(Nfnetlink)
    try:
        return read_table(netlink)
    finally:
        netlink.close()


def write(namespace: Namespace, kind: SetKind, family: Family, rows: Mapping[bytes, Value]) -> None:
    """Add elements behind the dataplane's back."""
    netlink = namespace.call(Nfnetlink)
    try:
        messages = add_elements(schema.TABLE, kind.of(family), rows, kind.shape)
        assert not netlink.transact([each.message for each in messages], SUBSYSTEM)
    finally:
        netlink.close()


def unordered(table: Table) -> dict[str, object]:
    """A table without the order of slots: the endpoints of each frontend and the numbers used."""
    result: dict[str, object] = dict(table)
    kinds = (schema.ENDPOINTS, schema.NODE_PORT_ENDPOINTS)
    for name in [kind.of(family) for kind in kinds for family in Family]:
        found: dict[bytes, list[tuple[int, Value]]] = {}
        for key, value in table.get(name, {}).items():
            (index,) = struct.unpack("=I", key[-4:])
            found.setdefault(key[:-4] + bytes([index >> 24]), []).append((index, value))
        result[name] = {
            key: (
                sorted(index for index, _ in pairs),
                sorted((value for _, value in pairs), key=repr),
            )
            for key, pairs in found.items()
        }
    return result


class Stage(msgspec.Struct, frozen=True):
    """One moment: what is wanted, and whether the agent reads the kernel back for it."""

    scene: Scene
    whole: bool


@st.composite
def histories(draw: st.DrawFn) -> list[Stage]:
    stages: list[Stage] = []
    for _ in range(draw(st.integers(1, 4))):
        scene = draw(scenes())
        if stages and draw(st.integers(0, 2)) > 0:
            before = stages[-1].scene
            kept = {
                "slices": tuple(each for each in before.slices if draw(st.booleans())),
                "node": draw(st.sampled_from([before.node, scene.node])),
            }
            scene = msgspec.structs.replace(before, **kept)
        stages.append(Stage(scene, whole=draw(st.integers(0, 3)) == 0))
    return stages


@settings(max_examples=examples(60), deadline=None)
@given(histories())
def test_any_history_ends_in_the_state_compiled_from_nothing(
    namespace: Namespace, history: list[Stage]
) -> None:
    with programming(namespace) as dataplane:
        namespace.call(lambda: play(dataplane, history))
        scene = history[-1].scene
        routings = tuple(scene.undivided().values())
        fresh = compiled(routings, scene.rules)
        assert unordered(held(namespace)) == unordered(fresh)
        again = dataplane.plan_full(routings, node_routing(scene))
        assert not again, str(again)
        after_restart = namespace.call(lambda: NftablesDataplane(OPTIONS))
        try:
            assert not after_restart.plan_full(routings, node_routing(scene))
        finally:
            after_restart.close()


def play(dataplane: NftablesDataplane, history: Sequence[Stage]) -> None:
    known: dict[ObjectName, ServiceRouting] = {}
    node: NodeRouting | None = None
    for stage in history:
        routings, wanted = stage.scene.undivided(), node_routing(stage.scene)
        if stage.whole:
            plan = dataplane.plan_full(routings.values(), wanted)
        else:
            asked = {name: routings.get(name) for name in {**known, **routings}}
            plan = dataplane.plan(Changes(asked, wanted if wanted != node else None))
        assert dataplane.commit(plan) == ()
        known, node = routings, wanted


def node_routing(scene: Scene) -> NodeRouting:
    return NodeRouting(scene.node.pod_networks, scene.node_port_addresses)


def numbered(number: int, count: int = 3, *, first: int = 0, affinity: int = 0) -> ServiceRouting:
    """A Service with a cluster IP of its own and `count` endpoints, those from `first` on."""
    address = parse_address(f"10.{96 + (number >> 16)}.{number >> 8 & 255}.{number & 255}")
    backends = tuple(
        Backend(bytes((10, 128 + (number >> 8), number & 255, each)) + b"\x1f\x90")
        for each in range(first, first + count)
    )
    frontend = Frontend(Scope.CLUSTER_IP, address, Port(80), Use.CLUSTER)
    port = PortRouting("http", Family.IPV4, Protocol.TCP, (frontend,), backends, ())
    return ServiceRouting(ObjectName("shop", f"s{number}"), (port,), affinity_timeout=affinity)


def cost(namespace: Namespace, routings: Sequence[ServiceRouting]) -> list[tuple[int, int]]:
    """The messages and bytes of several changes, with these Services in the kernel."""
    found = []
    with programming(namespace) as dataplane:
        namespace.call(lambda: dataplane.commit(dataplane.plan_full(routings, NodeRouting())))
        affinity = routings[0].affinity_timeout
        for wanted in (
            numbered(0, 4, affinity=affinity),  # one endpoint added
            numbered(0, 4, first=1, affinity=affinity),  # one replaced
            numbered(0, 3, first=2, affinity=affinity),  # one removed, which moves another
            numbered(0, 2, first=2, affinity=affinity),  # another class
            None,
        ):
            before = dataplane.messages_sent, dataplane.bytes_sent
            plan = dataplane.plan(Changes({ObjectName("shop", "s0"): wanted}))
            assert plan
            assert namespace.call(partial(dataplane.commit, plan)) == ()
            found.append(
                (dataplane.messages_sent - before[0], dataplane.bytes_sent - before[1]),
            )
    return found


@pytest.mark.parametrize("affinity", [0, 10800])
def test_a_change_costs_the_same_among_many_services_as_among_few(
    namespace: Namespace, affinity: int
) -> None:
    few = cost(namespace, [numbered(number, affinity=affinity) for number in range(100)])
    many = cost(namespace, [numbered(number, affinity=affinity) for number in range(10_000)])
    assert few == many
    # The bytes include the requests for what packets wrote to the maps of session affinity.
    most, largest = (13, 2800) if affinity else (12, 2400)
    assert all(messages <= most and size < largest for messages, size in few), few


def test_a_change_that_changes_nothing_costs_nothing(namespace: Namespace) -> None:
    routings = [numbered(number) for number in range(3)]
    with programming(namespace) as dataplane:
        namespace.call(lambda: dataplane.commit(dataplane.plan_full(routings, NodeRouting())))
        before = dataplane.messages_sent, dataplane.bytes_sent
        port = routings[1].ports[0]
        turned = msgspec.structs.replace(port, cluster=port.cluster[::-1])
        same = msgspec.structs.replace(routings[1], ports=(turned,))
        plan = dataplane.plan(Changes({same.name: same, ObjectName("shop", "unknown"): None}))
        assert not plan
        assert namespace.call(lambda: dataplane.commit(plan)) == ()
        assert (dataplane.messages_sent, dataplane.bytes_sent) == before


def with_ranges(name: str, address: str, *ranges: str) -> ServiceRouting:
    """A Service with a load balancer address that lets these in."""
    frontend = Frontend(Scope.LOAD_BALANCER, parse_address(address), Port(80), Use.CLUSTER)
    backend = Backend(bytes((10, 244, 2, 1)) + b"\x1f\x90")
    port = PortRouting("", Family.IPV4, Protocol.TCP, (frontend,), (backend,), ())
    networks: tuple[Network, ...] = tuple(map(parse_network, ranges))
    return ServiceRouting(ObjectName("shop", name), (port,), networks)


def misfit(routing: ServiceRouting) -> ServiceRouting:
    """The same with a key that is too long for its set, which no kernel takes."""
    (port,) = routing.ports
    address = parse_address(f"fd98::{len(routing.name.name)}")
    frontend = Frontend(Scope.EXTERNAL_IP, address, Port(80), Use.CLUSTER)
    wrong = msgspec.structs.replace(port, frontends=(*port.frontends, frontend))
    return msgspec.structs.replace(routing, ports=(wrong,))


def program(namespace: Namespace, dataplane: NftablesDataplane, *routings: ServiceRouting) -> None:
    whole = dataplane.plan_full(routings, NodeRouting())
    assert namespace.call(lambda: dataplane.commit(whole)) == ()


def test_a_rejected_service_is_left_out_and_the_rest_is_programmed(
    namespace: Namespace,
) -> None:
    good, well, other = (
        with_ranges("good", "192.0.2.1", "203.0.113.0/24"),
        with_ranges("bad", "192.0.2.2", "198.51.100.0/24"),
        with_ranges("other", "192.0.2.3", "203.0.113.0/24"),
    )
    bad, worse = misfit(well), misfit(with_ranges("worse", "192.0.2.4"))
    with programming(namespace) as dataplane:
        program(namespace, dataplane, good)
        plan = dataplane.plan(Changes({each.name: each for each in (bad, worse, other)}))
        failures = namespace.call(lambda: dataplane.commit(plan))
        assert {failure.name for failure in failures} == {bad.name, worse.name}
        assert all(isinstance(failure.error, RejectedError) for failure in failures)
        assert held(namespace) == compiled([good, other])
        # A Service that was left out can be removed and added like one that never existed.
        assert not dataplane.plan(Changes({bad.name: None, worse.name: None}))
        again = dataplane.plan(Changes({well.name: well}))
        assert namespace.call(lambda: dataplane.commit(again)) == ()
        assert held(namespace) == compiled([good, other, well])


@pytest.mark.parametrize("whole", [False, True])
def test_a_rejected_change_leaves_the_service_as_it_was(namespace: Namespace, whole: bool) -> None:
    before = with_ranges("web", "192.0.2.2", "198.51.100.0/24")
    after = misfit(with_ranges("web", "192.0.2.2", "203.0.113.0/24"))
    with programming(namespace) as dataplane:
        program(namespace, dataplane, before, numbered(1), numbered(2))
        if whole:
            plan = dataplane.plan_full([after, numbered(2, 5)], NodeRouting())
        else:
            gone = numbered(1).name
            wanted = {after.name: after, gone: None, numbered(2).name: numbered(2, 5)}
            plan = dataplane.plan(Changes(wanted))
        (failure,) = namespace.call(lambda: dataplane.commit(plan))
        assert failure.name == after.name
        assert held(namespace) == compiled([before, numbered(2, 5)])
        program(namespace, dataplane, before)
        assert held(namespace) == compiled([before])


def test_a_conflict_with_a_foreign_element_is_no_fault_of_the_service(
    namespace: Namespace,
) -> None:
    good, web = (
        with_ranges("good", "192.0.2.1", "203.0.113.0/24"),
        with_ranges("web", "192.0.2.2", "203.0.113.0/24"),
    )
    key = frontend_key(parse_address("192.0.2.2"), Protocol.TCP, 80)
    low, high = parse_address("203.0.113.200"), parse_address("203.0.114.20")
    with programming(namespace) as dataplane:
        program(namespace, dataplane, good)
        write(namespace, nft.SOURCES, Family.IPV4, {key + low + key + high: b""})
        there = held(namespace)
        plan = dataplane.plan(Changes({web.name: web, numbered(1).name: numbered(1)}))
        with pytest.raises(StaleStateError):
            namespace.call(lambda: dataplane.commit(plan))
        assert held(namespace) == there
        program(namespace, dataplane, good, web, numbered(1))
        assert held(namespace) == compiled([good, web, numbered(1)])


def test_endpoints_in_two_slots_are_repaired(namespace: Namespace) -> None:
    routing = numbered(7, 3)
    with programming(namespace) as dataplane:
        namespace.call(lambda: dataplane.commit(dataplane.plan_full([routing], NodeRouting())))
        key = frontend_key(routing.ports[0].frontends[0].address, Protocol.TCP, 80)
        again = {key + struct.pack("=I", 3): routing.ports[0].cluster[0] + b"\0\0"}
        write(namespace, schema.ENDPOINTS, Family.IPV4, again)
        plan = dataplane.plan_full([routing], NodeRouting())
        assert plan
        namespace.call(lambda: dataplane.commit(plan))
        assert held(namespace) == compiled([routing])


def test_an_affinity_learned_during_the_commit_is_deleted_later(namespace: Namespace) -> None:
    before = numbered(0, 2, affinity=60)
    after = numbered(0, 1, first=1, affinity=60)
    (frontend,) = after.ports[0].frontends
    key = frontend_key(frontend.address, Protocol.TCP, frontend.port)
    left, stayed = (each + b"\0\0" for each in before.ports[0].cluster)
    late, prompt = (bytes((10, 244, 9, each)) + key for each in range(2))
    with programming(namespace) as dataplane:
        program(namespace, dataplane, before)
        change = dataplane.plan(Changes({after.name: after}))
        assert namespace.call(lambda: dataplane.commit(change)) == ()
        write(namespace, schema.AFFINITY, Family.IPV4, {late: left, prompt: stayed})
        dataplane.tick()
        dataplane.tick()
        assert learned(namespace) == {prompt: stayed}
        # Nothing has changed since the last commit, so no affinity is read.
        write(namespace, schema.AFFINITY, Family.IPV4, {late: left})
        dataplane.tick()
        assert learned(namespace) == {prompt: stayed, late: left}


def learned(namespace: Namespace) -> Rows:
    netlink = namespace.call(Nfnetlink)
    try:
        return read_learned(netlink, Family.IPV4)
    finally:
        netlink.close()
