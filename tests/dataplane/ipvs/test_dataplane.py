"""Commits write the least, leave foreign objects alone, and drain servers; a kernel in dicts."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any

import pytest
from msgspec.structs import replace

from pyproxy.dataplane.interface import Drift, NodeRouting
from pyproxy.dataplane.ipvs import dataplane as module
from pyproxy.dataplane.ipvs import rows
from pyproxy.dataplane.ipvs.drift_poller import DRAIN_TIMEOUT
from pyproxy.dataplane.ipvs.ruleset import Options
from pyproxy.errors import KernelError, StaleStateError
from pyproxy.model.address import (
    Address,
    Backend,
    Family,
    Port,
    Protocol,
    backend,
    parse_address,
    parse_network,
)
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.ipvs import PERSISTENT, SCHED_1, SCHED_2, Scheduling, Virtual
from pyproxy.netlink.kernel_errors import kernel_error
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use
from tests.dataplane.ipvs.stage import Routings, Stage

NODE = parse_address("172.30.0.11")
WEB = ObjectName("shop", "web")
HTTP = Virtual(Family.IPV4, 6, parse_address("10.96.0.1"), Port(80))
DNS = HTTP._replace(protocol=17)
ONE, TWO, THREE = (backend(parse_address(f"10.244.2.{number}"), Port(8080)) for number in (1, 2, 3))


def service(
    *backends: Backend,
    protocol: Protocol = Protocol.TCP,
    use: Use = Use.CLUSTER,
    scope: Scope = Scope.CLUSTER_IP,
    address: Address = HTTP.address,
    local: tuple[Backend, ...] = (),
    name: ObjectName = WEB,
    **more: object,
) -> ServiceRouting:
    frontend = Frontend(scope, address, HTTP.port, use)
    port = PortRouting("http", Family.IPV4, protocol, (frontend,), backends, local)
    return replace(ServiceRouting(name, (port,)), **more)


def of(*routings: ServiceRouting) -> Routings:
    return {routing.name: routing for routing in routings}


def many(count: int) -> list[ServiceRouting]:
    return [
        service(
            ONE,
            TWO,
            name=ObjectName("many", str(number)),
            address=Address(bytes((10, 97, number >> 8, number & 255))),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("among", [100, 1_000, 5_000])
def test_one_endpoint_is_one_message_among_however_many_services(stage: Stage, among: int) -> None:
    others = many(among)
    stage.begin(of(*others, service(ONE, TWO)))
    costs = []
    for wanted in (service(ONE, TWO, THREE), service(ONE, TWO), service(ONE, THREE)):
        sent = stage.sent()
        stage.change(of(*others, wanted))
        costs.append(stage.sent() - sent)
    # The third was on its way out, and is asked back; the second leaves.
    assert costs == [1, 1, 2]


def test_the_first_sync_sends_one_message_for_each_object(stage: Stage) -> None:
    stage.begin(of(*many(300)))
    assert stage.kernel.messages_sent == 300 * (1 + 2 + 1)
    # All elements of a set are in one message: addresses, frontends, cluster IPs. Claims come and
    # go.
    assert stage.rules.messages_sent == 3 + 2


@pytest.mark.parametrize(
    ("asked", "timeout", "expected"),
    [
        ("", 0, Scheduling("rr")),
        ("wlc", 0, Scheduling("wlc")),
        ("sh", 0, Scheduling("sh", SCHED_1)),
        ("mh", 60, Scheduling("mh", SCHED_1 | SCHED_2 | PERSISTENT, 60)),
        ("", 10800, Scheduling("rr", PERSISTENT, 10800)),
    ],
)
def test_a_service_may_name_its_scheduler(
    stage: Stage, asked: str, timeout: int, expected: Scheduling
) -> None:
    stage.begin(of(service(ONE, scheduler=asked, affinity_timeout=timeout)))
    assert stage.kernel.how == {HTTP: expected}
    stage.change(of(service(ONE)))
    assert stage.kernel.how == {HTTP: Scheduling("rr")}


@pytest.mark.parametrize("whole", [False, True])
def test_the_address_of_a_rejected_service_is_not_taken(stage: Stage, whole: bool) -> None:
    stage.begin({})
    rejected = service(ONE, scheduler="twos", scope=Scope.EXTERNAL_IP)
    assert len(stage.begin(of(rejected)) if whole else stage.change(of(rejected))) == 1
    assert not stage.kernel.on_device
    assert stage.change({}) == ()
    assert not stage.kernel.on_device
    # Another Service with this address needs it, and keeps it.
    other = replace(service(TWO, scope=Scope.EXTERNAL_IP), name=ObjectName("shop", "other"))
    (port,) = other.ports
    (frontend,) = port.frontends
    other = replace(other, ports=(replace(port, frontends=(replace(frontend, port=Port(81)),)),))
    assert [each.name for each in stage.change(of(rejected, other))] == [rejected.name]
    assert stage.kernel.on_device == {frontend.address}


def test_a_scheduler_that_the_kernel_lacks_costs_its_service_alone(stage: Stage) -> None:
    (other,) = many(1)
    (failure,) = stage.begin(of(service(ONE, scheduler="twos"), other))
    assert failure.name == WEB
    assert "no scheduler twos" in str(failure.error)
    assert len(stage.kernel.table) == 1
    assert not stage.begin(of(service(ONE), other))
    assert len(stage.kernel.table) == 2


def test_a_server_with_connections_drains_and_is_removed_when_they_end(
    stage: Stage,
) -> None:
    stage.begin(of(service(ONE, TWO)))
    stage.kernel.connections[HTTP, TWO] = 1
    stage.change(of(service(ONE)))
    stage.dataplane.tick()
    assert stage.kernel.table == {HTTP: {ONE: 1, TWO: 0}}
    stage.hang_up()
    assert stage.kernel.table == {HTTP: {ONE: 1}}


def test_connections_that_do_not_end_are_ended_after_the_drain_timeout(stage: Stage) -> None:
    stage.begin(of(service(ONE, TWO)))
    stage.kernel.connections[HTTP, TWO] = 1
    stage.change(of(service(ONE)))
    stage.now += DRAIN_TIMEOUT - 1
    stage.dataplane.tick()
    assert stage.kernel.table[HTTP] == {ONE: 1, TWO: 0}
    stage.now += 1
    stage.dataplane.tick()
    assert stage.kernel.table[HTTP] == {ONE: 1}


def test_a_draining_server_goes_on_draining_after_a_restart(stage: Stage) -> None:
    stage.begin(of(service(ONE, TWO)))
    stage.kernel.connections[HTTP, TWO] = 1
    stage.change(of(service(ONE)))
    stage.restarted()
    sent = stage.sent()
    stage.begin()
    assert stage.sent() == sent
    stage.hang_up()
    assert stage.kernel.table[HTTP] == {ONE: 1}


def test_an_endpoint_that_comes_back_in_time_keeps_its_connections(stage: Stage) -> None:
    stage.begin(of(service(ONE, TWO)))
    stage.kernel.connections[HTTP, TWO] = 1
    stage.change(of(service(ONE)))
    stage.change(of(service(ONE, TWO)))
    stage.hang_up()
    assert stage.kernel.table[HTTP] == {ONE: 1, TWO: 1}


@pytest.mark.parametrize("protocol", [Protocol.UDP, Protocol.SCTP])
def test_flows_do_not_keep_a_server(stage: Stage, protocol: Protocol) -> None:
    stage.begin(of(service(ONE, TWO, protocol=protocol)))
    virtual = HTTP._replace(protocol=int(protocol))
    stage.kernel.connections[virtual, TWO] = 1
    stage.change(of(service(ONE, protocol=protocol)))
    assert stage.kernel.table[virtual] == {ONE: 1}


def test_a_terminating_endpoint_that_serves_keeps_its_flows(stage: Stage) -> None:
    stage.begin(of(service(ONE, TWO, protocol=Protocol.UDP)))
    routing = service(ONE, protocol=Protocol.UDP)
    (port,) = routing.ports
    stage.change(of(replace(routing, ports=(replace(port, draining=(TWO,)),))))
    assert stage.kernel.table[DNS] == {ONE: 1, TWO: 0}
    stage.hang_up()
    assert stage.kernel.table[DNS] == {ONE: 1, TWO: 0}


def test_a_deleted_service_rejects_new_connections_while_old_ones_last(stage: Stage) -> None:
    stage.begin(of(service(ONE)))
    stage.kernel.connections[HTTP, ONE] = 1
    stage.change({})
    stage.dataplane.tick()
    assert stage.kernel.table == {HTTP: {ONE: 0}}
    assert stage.kernel.on_device == {HTTP.address}
    assert stage.rules.table["no-endpoint-services4"]
    stage.hang_up()
    assert not stage.kernel.table
    assert not stage.kernel.on_device
    assert not any(stage.rules.table.values())


def test_a_service_without_endpoints_still_rejects_after_the_last_connection(
    stage: Stage,
) -> None:
    stage.begin(of(service(ONE)))
    stage.kernel.connections[HTTP, ONE] = 1
    stage.change(of(service(use=Use.REJECT)))
    stage.hang_up()
    assert not stage.kernel.table
    assert stage.kernel.on_device == {HTTP.address}
    assert len(stage.rules.table["no-endpoint-services4"]) == 1


@pytest.mark.parametrize("restarts", [True, False])
def test_rejection_ends_with_the_service_and_its_last_connection(
    stage: Stage, restarts: bool
) -> None:
    stage.begin(of(service(ONE)))
    stage.kernel.connections[HTTP, ONE] = 1
    stage.change(of(service(use=Use.REJECT)))
    if restarts:
        stage.restarted()
        stage.begin({})
    else:
        stage.change({})
    assert len(stage.rules.table["no-endpoint-services4"]) == 1
    stage.hang_up()
    assert not stage.kernel.table
    assert not any(stage.rules.table.values())


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("restarts", [True, False])
def test_an_external_address_is_removed_when_the_last_connection_is_closed(
    monkeypatch: pytest.MonkeyPatch, own: bool, scope: Scope, restarts: bool
) -> None:
    stage = Stage(monkeypatch, [NODE] if own else [])
    virtual = HTTP._replace(address=NODE)
    stage.begin(of(service(ONE, address=NODE, scope=scope)))
    stage.kernel.connections[virtual, ONE] = 1
    stage.change({})
    if restarts:
        stage.restarted()
        stage.begin()
    stage.dataplane.tick()
    assert virtual in stage.kernel.table
    stage.kernel.closed = True
    stage.dataplane.tick()
    assert (virtual in stage.kernel.table) is (scope is Scope.CLUSTER_IP and not own)
    stage.hang_up()
    assert not stage.kernel.table
    assert not any(stage.rules.table.values())


FOREIGN = Virtual(Family.IPV4, 6, NODE, Port(5432))


def test_foreign_virtual_services_are_left_alone(stage: Stage) -> None:
    foreign = {FOREIGN: {ONE: 3}, Virtual(Family.IPV4, 0, Address(b""), Port(0), 7): {TWO: 1}}
    stage.kernel.table.update({virtual: dict(found) for virtual, found in foreign.items()})
    stage.kernel.how.update(dict.fromkeys(foreign, Scheduling("wrr")))
    stage.begin(of(service(ONE), service(TWO, name=ObjectName("shop", "np"), address=NODE,
                                         scope=Scope.NODE_PORT)))  # fmt: skip
    stage.change(of(service(TWO)))
    stage.hang_up()
    stage.restarted()
    stage.begin()
    stage.restarted()
    stage.dataplane.cleanup()
    assert stage.kernel.table == foreign
    assert not stage.kernel.device
    assert not stage.rules.table


def test_a_foreign_virtual_service_on_a_frontend_costs_that_service_alone(stage: Stage) -> None:
    stage.kernel.table[FOREIGN], stage.kernel.how[FOREIGN] = {}, Scheduling("wrr")
    taken = Frontend(Scope.NODE_PORT, NODE, FOREIGN.port, Use.CLUSTER)
    routing = service(ONE)
    port = replace(routing.ports[0], frontends=(*routing.ports[0].frontends, taken))
    (other,) = many(1)
    (failure,) = stage.begin(of(replace(routing, ports=(port,)), other))
    assert failure.name == WEB
    assert "another program has the virtual service tcp 172.30.0.11:5432" in str(failure.error)
    assert stage.kernel.how[FOREIGN] == Scheduling("wrr")


def taking(routing: ServiceRouting, taken: Virtual = FOREIGN) -> ServiceRouting:
    """Add a node port on another program's virtual service."""
    frontend = Frontend(Scope.NODE_PORT, taken.address, taken.port, Use.CLUSTER)
    (port,) = routing.ports
    return replace(routing, ports=(replace(port, frontends=(*port.frontends, frontend)),))


def add_foreign(stage: Stage) -> None:
    stage.kernel.table[FOREIGN], stage.kernel.how[FOREIGN] = {THREE: 3}, Scheduling("wrr")


def test_a_foreign_virtual_service_gets_none_of_our_servers(stage: Stage) -> None:
    add_foreign(stage)
    (other,) = many(1)
    assert not stage.begin(of(other))
    before = stage.state()
    # A sync of changes alone finds memory out of date, and the next one reads the kernel.
    with pytest.raises(StaleStateError):
        stage.change(of(taking(service(ONE)), other))
    (failure,) = stage.begin()
    assert failure.name == WEB
    assert stage.state() == before
    assert not stage.change(of(other))
    stage.hang_up()
    assert stage.state() == before


@pytest.mark.parametrize("restarts", [True, False])
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_a_rejected_service_keeps_its_previous_state(
    stage: Stage, protocol: Protocol, restarts: bool
) -> None:
    own = service(ONE, protocol=protocol, scope=Scope.EXTERNAL_IP)
    (other,) = many(1)
    assert not stage.begin(of(own, other))
    changed = service(TWO, protocol=protocol, scope=Scope.EXTERNAL_IP)
    taken = FOREIGN._replace(protocol=int(protocol))
    stage.kernel.table[taken], stage.kernel.how[taken] = {THREE: 3}, Scheduling("wrr")
    before = stage.state()
    if restarts:
        stage.restarted()
    for _ in range(2):
        (failure,) = stage.begin(of(taking(changed), other))
        assert failure.name == WEB
        stage.hang_up()
        assert stage.state() == before
    del stage.kernel.table[taken], stage.kernel.how[taken]
    assert not stage.begin()
    stage.hang_up()
    assert set(
        stage.kernel.table[Virtual(Family.IPV4, int(protocol), HTTP.address, HTTP.port)]
    ) == {TWO}


@pytest.mark.parametrize("whole", [False, True])
def test_the_rules_know_no_address_of_a_rejected_service(stage: Stage, whole: bool) -> None:
    stage.begin({})
    rejected = service(ONE, scheduler="twos", scope=Scope.EXTERNAL_IP)
    assert len(stage.begin(of(rejected)) if whole else stage.change(of(rejected))) == 1
    assert not any(stage.rules.table.values())


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_rejected_address_costs_its_service_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    (other,) = many(1)
    stage.begin(of(service(ONE), other))
    before = stage.state()
    change_addresses = stage.kernel.change_addresses
    bad = parse_address("192.0.2.7")

    def some(gone: Iterable[Address], new: Iterable[Address]) -> list[tuple[Address, KernelError]]:
        new = set(new)
        change_addresses(gone, new - {bad})
        return [(each, kernel_error(error, "")) for each in new & {bad}]

    monkeypatch.setattr(stage.kernel, "change_addresses", some)
    external = Frontend(Scope.EXTERNAL_IP, bad, HTTP.port, Use.CLUSTER)
    (port,) = service(TWO).ports
    moved = replace(service(TWO), ports=(replace(port, frontends=(*port.frontends, external)),))
    (failure,) = stage.change(of(moved, other))
    assert failure.name == WEB
    stage.hang_up()
    assert stage.state() == before


@pytest.mark.parametrize("count", [10, 100])
def test_rows_of_many_rejected_services_are_compiled_a_few_times_each(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    compiled = 0
    add_service = rows.add_service

    def counted(*arguments: Any) -> None:
        nonlocal compiled
        compiled += 1
        add_service(*arguments)

    monkeypatch.setattr(module, "add_service", counted)
    rejected = [replace(each, scheduler="lblc") for each in many(count)]
    assert len(stage.begin(of(*rejected))) == count
    assert compiled <= 4 * count


def test_adopted_virtual_services_are_changed_in_place_or_removed(stage: Stage) -> None:
    wanted = HTTP._replace(address=NODE)
    stale, foreign = wanted._replace(port=Port(30777)), FOREIGN
    for virtual in (wanted, stale, foreign):
        stage.kernel.table[virtual] = {TWO: 1}
        stage.kernel.how[virtual] = Scheduling("rr")
    stage.adopted = (wanted, stale)
    node_port = service(ONE, TWO, address=NODE, scope=Scope.NODE_PORT)
    assert stage.begin(of(node_port)) == ()
    # Its connections have until they end, like those of any Service that goes.
    assert stage.kernel.table[stale] == {TWO: 0}
    stage.adopted = ()
    stage.restarted()
    stage.begin()
    stage.hang_up()
    assert stage.kernel.table == {wanted: {ONE: 1, TWO: 1}, foreign: {TWO: 1}}
    # A virtual service added later is another program's, and was not left by kube-proxy.
    stage.kernel.table[stale], stage.kernel.how[stale] = {TWO: 1}, Scheduling("rr")
    stage.begin()
    assert stale in stage.kernel.table


def test_a_device_without_our_alias_is_labelled_and_adopts_nothing(stage: Stage) -> None:
    # kube-proxy's device, and a virtual service that is not on one of its addresses.
    add_foreign(stage)
    stage.kernel.device, stage.kernel.on_device = 3, {HTTP.address}
    (failure,) = stage.begin(of(taking(service(ONE))))
    assert "another program has" in str(failure.error)
    assert stage.kernel.labelled
    assert stage.kernel.table[FOREIGN] == {THREE: 3}


def test_cleanup_without_the_table_removes_what_is_on_the_device(stage: Stage) -> None:
    add_foreign(stage)
    assert not stage.begin(of(service(ONE), *many(3)))
    stage.rules.delete()
    stage.restarted()
    stage.dataplane.cleanup()
    assert stage.kernel.table == {FOREIGN: {THREE: 3}}
    assert not stage.kernel.device


def test_virtual_services_in_excluded_networks_are_left_alone(stage: Stage) -> None:
    stage.options = Options(exclude_networks=(parse_network("10.96.7.0/24"),))
    stage.restarted()
    stage.begin(of(service(ONE)))
    spared = HTTP._replace(address=parse_address("10.96.7.1"))
    stage.kernel.on_device.add(spared.address)
    stage.kernel.table[spared], stage.kernel.how[spared] = {ONE: 1}, Scheduling("rr")
    stage.restarted()
    stage.begin()
    assert spared in stage.kernel.table


def test_the_nodes_own_addresses_stay_off_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(monkeypatch, [NODE])
    stage.begin(of(service(ONE, address=NODE, scope=Scope.EXTERNAL_IP), *many(1)))
    assert stage.kernel.on_device == {Address(b"\x0a\x61\0\0")}
    assert len(stage.kernel.table) == 2


def test_policy_local_adds_a_virtual_service_for_internal_clients(
    stage: Stage,
) -> None:
    stage.begin(of(service(ONE, TWO, use=Use.SPLIT, scope=Scope.EXTERNAL_IP, local=(ONE,))))
    (marked,) = (virtual for virtual in stage.kernel.table if virtual.mark)
    assert stage.kernel.table == {HTTP: {ONE: 1}, marked: {ONE: 1, TWO: 1}}
    (data,) = stage.rules.table["internal-services4"].values()
    assert isinstance(data, bytes)
    stage.restarted()
    sent = stage.sent()
    stage.begin()
    assert stage.sent() == sent


def test_a_virtual_service_by_mark_hashes_the_client_instead_of_being_persistent(
    stage: Stage,
) -> None:
    split = service(ONE, use=Use.SPLIT, scope=Scope.EXTERNAL_IP, local=(ONE,), affinity_timeout=60)
    stage.begin(of(split))
    (marked,) = (virtual for virtual in stage.kernel.table if virtual.mark)
    assert stage.kernel.how[HTTP] == Scheduling("rr", PERSISTENT, 60)
    assert stage.kernel.how[marked] == Scheduling("sh", SCHED_1)


@pytest.mark.parametrize(
    "harm", ["weight", "method", "server", "service", "foreign", "address", "scheduler"]
)
def test_a_change_by_another_program_is_noticed_and_repaired(stage: Stage, harm: str) -> None:
    stage.begin(of(service(ONE, TWO)), NodeRouting())
    before = stage.state()
    assert stage.dataplane.tick() is None
    kernel = stage.kernel
    match harm:
        case "weight":
            kernel.table[HTTP][ONE] = 5
        case "method":
            kernel.routed.add((HTTP, ONE))
        case "server":
            del kernel.table[HTTP][ONE]
        case "service":
            del kernel.table[HTTP], kernel.how[HTTP]
        case "foreign":
            kernel.table[HTTP][THREE] = 1
        case "address":
            kernel.on_device.clear()
            kernel.touched = True
        case "scheduler":
            kernel.how[HTTP] = Scheduling("wlc")
    assert stage.dataplane.tick() == Drift("")
    stage.begin()
    stage.hang_up()
    assert stage.state() == before
    assert not kernel.routed
    assert stage.dataplane.tick() is None
