"""The tracer agrees with the meaning of Services: random clusters and packets against an oracle.

The oracle is nftables mode's, over policy's routing alone. `_expected` corrects it for what differs
in ipvs mode. A second suite removes parts of the state, and the property must notice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction

import pytest
from hypothesis import Phase, find, given, settings
from msgspec.structs import replace

from pyproxy.dataplane.ipvs import schema
from pyproxy.dataplane.ipvs.kernel_trace import find_template
from pyproxy.dataplane.ipvs.ruleset import Options
from pyproxy.dataplane.ipvs.schedulers import shares
from pyproxy.dataplane.ipvs.tracer import IpvsState, trace
from pyproxy.dataplane.nft.schema import SetKind
from pyproxy.dataplane.packets import (
    Delivered,
    Dropped,
    DropReason,
    Masquerade,
    Packet,
    Rejected,
    RejectWith,
    TraceResult,
    Untouched,
    Verdict,
)
from pyproxy.model.address import Address, Backend, Family, Port, Protocol, parse_address
from pyproxy.netlink.ipvs import Scheduling, Server, Virtual
from pyproxy.policy.routing import Scope, ServiceRouting, Use
from tests.dataplane.ipvs.stage import Stage
from tests.dataplane.ipvs.test_dataplane import HTTP, NODE, ONE, THREE, TWO, of, service
from tests.dataplane.ipvs.test_histories import node_of
from tests.dataplane.nftables import oracle
from tests.dataplane.nftables.scenes import LOCAL, Scene, encounters
from tests.examples import examples

Encounter = tuple[Scene, Packet]
Mutation = Callable[[IpvsState], IpvsState]


def state_of(scene: Scene, routings: dict[object, ServiceRouting] | None = None) -> IpvsState:
    """Program a scene into a kernel in dicts, and return what it holds."""
    options = Options(masquerade_all=scene.masquerade_all, pod_interface=scene.pod_interface)
    with pytest.MonkeyPatch.context() as monkeypatch:
        stage = Stage(monkeypatch, LOCAL)
        stage.options = options
        stage.restarted()
        assert not stage.begin(scene.routings(), node_of(scene))
    families = frozenset(network.family for network in scene.node.pod_networks)
    return held_by(stage, replace(options, pod_families=families))


def held_by(stage: Stage, options: Options) -> IpvsState:
    kernel = stage.kernel
    return IpvsState(
        stage.rules.table,
        kernel.how,
        {virtual: kernel.servers(virtual) for virtual in kernel.how},
        options,
        LOCAL,
        frozenset(kernel.on_device),
    )


def expected(
    packet: Packet, scene: Scene, routings: Iterable[ServiceRouting]
) -> frozenset[Verdict]:
    """Return the verdicts that ipvs mode may give a packet."""
    routings = tuple(routings)
    found = oracle.frontend_of(packet, routings)
    if not packet.new:
        return frozenset([_of_known_flow(packet, scene, found, routings)])
    if found is None:
        # The kernel takes every packet to an address on kube-ipvs0, not to cluster IPs alone.
        if packet.destination in _service_addresses(routings):
            return frozenset([_reject(packet)])
        hairpins = {b[:-2] for each in routings for port in each.ports for b in port.hairpin}
        to_itself = packet.source == packet.destination and packet.source not in LOCAL
        is_hairpin = to_itself and packet.source in hairpins
        return frozenset([Untouched(Masquerade.HAIRPIN if is_hairpin else Masquerade.NONE)])
    verdicts = oracle.wanted(packet, scene, routings)
    return frozenset(_masqueraded(packet, found[2].use, verdict) for verdict in verdicts)


def _masqueraded(packet: Packet, use: Use, verdict: Verdict) -> Verdict:
    if not isinstance(verdict, Delivered):
        return verdict
    if verdict.backend[:-2] in LOCAL:
        # It does not leave the node, so its source is an address that the endpoint can reach.
        return Delivered(verdict.backend, Masquerade.NONE)
    if use is Use.SPLIT and packet.source in LOCAL:
        return Delivered(verdict.backend, Masquerade.MARK)
    return verdict


def _of_known_flow(
    packet: Packet,
    scene: Scene,
    found: oracle.Found | None,
    routings: tuple[ServiceRouting, ...],
) -> Verdict:
    if packet.protocol is Protocol.TCP:
        return Untouched()
    if found is None:
        is_ours = packet.destination in _service_addresses(routings)
        return _reject(packet) if is_ours else Untouched()
    use = found[2].use
    if use is Use.REJECT:
        return _reject(packet)
    if use is Use.DROP or not oracle.allowed(packet, scene, found)[0]:
        return Dropped(DropReason.POLICY)
    return Untouched()


def _service_addresses(routings: Iterable[ServiceRouting]) -> set[Address]:
    return {
        frontend.address
        for routing in routings
        for port in routing.ports
        for frontend in port.frontends
        if frontend.scope is not Scope.NODE_PORT
    } - LOCAL


def _reject(packet: Packet) -> Rejected:
    return Rejected(RejectWith.TCP_RESET if packet.protocol is Protocol.TCP else RejectWith.ICMP)


def matches(result: TraceResult, wanted: frozenset[Verdict]) -> bool:
    """rr gives all endpoints the same share, and sh gives each client one of them."""
    found = result.verdicts()
    is_hashed = any(step.by.endswith(" sh") for path in result.paths for step in path.steps)
    is_right = found.keys() <= wanted if is_hashed else found.keys() == wanted
    return is_right and set(found.values()) == {Fraction(1, len(found))}


def disagrees(encounter: Encounter, mutate: Mutation) -> bool:
    scene, packet = encounter
    traced = trace(packet, mutate(state_of(scene)))
    wanted = expected(packet, scene, scene.routings().values())
    return not matches(traced, wanted)


@settings(max_examples=examples(500), deadline=None)
@given(encounters())
def test_every_packet_gets_the_verdict_that_its_service_means(encounter: Encounter) -> None:
    scene, packet = encounter
    traced = trace(packet, state_of(scene))
    wanted = expected(packet, scene, scene.routings().values())
    assert matches(traced, wanted), f"\n{traced}"


def without_set(*kinds: SetKind) -> Mutation:
    names = {kind.of(family) for kind in kinds for family in Family}

    def mutate(state: IpvsState) -> IpvsState:
        kept = {name: rows for name, rows in state.sets.items() if name not in names}
        return replace(state, sets=kept)

    return mutate


def without_marks(state: IpvsState) -> IpvsState:
    by_address = {virtual: how for virtual, how in state.virtuals.items() if not virtual.mark}
    return replace(state, virtuals=by_address)


def without_a_server(state: IpvsState) -> IpvsState:
    return replace(state, servers={v: found[1:] for v, found in state.servers.items()})


def all_weights_one(state: IpvsState) -> IpvsState:
    return replace(
        state,
        servers={v: [replace(s, weight=1) for s in found] for v, found in state.servers.items()},
    )


FAULTS: dict[str, Mutation] = {
    "a missing virtual service": lambda state: replace(state, virtuals={}),
    "a missing real server": without_a_server,
    "a draining real server with weight 1": all_weights_one,
    "a missing virtual service by mark": without_marks,
    "a missing frontend": without_set(schema.FRONTENDS),
    "a missing service address": without_set(schema.ADDRESSES),
    "external frontends that are not masqueraded": without_set(schema.MASQUERADED),
    "internal clients without their mark": without_set(schema.INTERNAL_SERVICES),
    "frontends that are not rejected": without_set(schema.NO_ENDPOINT_SERVICES),
    "frontends that are not dropped": without_set(schema.DROPPED),
    "an ignored source range": without_set(schema.SOURCE_RANGE_FRONTENDS),
    "source ranges that admit no client": without_set(schema.SOURCES),
    "cluster IPs that are not known": without_set(schema.CLUSTER_IPS),
    "pods that are not known": without_set(schema.PODS),
    "a missing hairpin": without_set(schema.HAIRPIN),
    "a masquerade of every client": lambda state: replace(
        state, options=replace(state.options, masquerade_all=True)
    ),
}

SEARCH = settings(
    max_examples=1500, deadline=None, database=None, derandomize=True, phases=[Phase.generate]
)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    found = find(encounters(), lambda each: disagrees(each, FAULTS[fault]), settings=SEARCH)
    assert not disagrees(found, lambda state: state)


CLIENT = parse_address("10.244.1.7")
TO_HTTP = Packet(CLIENT, HTTP.address, Protocol.TCP, HTTP.port, "cbr0")


def programmed(stage: Stage, *routings: ServiceRouting) -> IpvsState:
    stage.begin(of(*routings))
    return held_by(stage, Options())


def test_a_draining_server_gets_no_new_connections(stage: Stage) -> None:
    programmed(stage, service(ONE, TWO))
    stage.kernel.connections[HTTP, TWO] = 1
    stage.change(of(service(ONE)))
    state = held_by(stage, Options())
    assert {each.backend: each.weight for each in state.servers[HTTP]} == {ONE: 1, TWO: 0}
    assert trace(TO_HTTP, state).verdicts() == {Delivered(ONE): 1}


def test_a_virtual_service_without_a_usable_server_rejects_with_icmp(stage: Stage) -> None:
    state = programmed(stage, service(ONE))
    stopped = replace(state, servers={HTTP: [Server(ONE, 0)]})
    assert trace(TO_HTTP, stopped).verdicts() == {Rejected(RejectWith.ICMP): 1}


@pytest.mark.parametrize(
    ("scheduler", "wanted"),
    [
        ("rr", {ONE: Fraction(1, 2), TWO: Fraction(1, 2)}),
        ("lc", {ONE: Fraction(1, 2), TWO: Fraction(1, 2)}),
        ("wrr", {ONE: Fraction(1, 4), TWO: Fraction(3, 4)}),
        ("wlc", {ONE: Fraction(1, 4), TWO: Fraction(3, 4)}),
        ("sh", {TWO: Fraction(1)}),
        ("fo", {TWO: Fraction(1)}),
    ],
)
def test_shares_follow_the_scheduler_and_the_weights(
    stage: Stage, scheduler: str, wanted: dict[Backend, Fraction]
) -> None:
    state = replace(
        programmed(stage, service(ONE)),
        virtuals={HTTP: Scheduling(scheduler)},
        servers={HTTP: [Server(ONE, 1), Server(TWO, 3), Server(THREE, 0)]},
    )
    traced = trace(TO_HTTP, state)
    assert traced.verdicts() == {Delivered(each): share for each, share in wanted.items()}
    is_estimate = scheduler in ("lc", "wlc")
    assert any("many clients" in remark for remark in traced.remarks) is is_estimate


def test_source_hashing_gives_each_client_one_server_in_proportion_to_the_weights() -> None:
    servers = [Server(ONE, 1), Server(TWO, 3), Server(THREE, 0)]
    counts: Counter[Backend] = Counter()
    for number in range(1 << 12):
        client = Address(bytes((10, 244, number >> 8, number & 255)))
        ((server, share),) = shares("sh", servers, client)
        assert share == 1
        counts[server.backend] += 1
    # Buckets of the server without weight go to the next usable ones.
    assert counts.keys() == {ONE, TWO}
    assert counts[TWO] > 2 * counts[ONE]


def test_a_client_with_affinity_returns_to_its_server_until_that_drains(stage: Stage) -> None:
    state = programmed(stage, service(ONE, TWO, affinity_timeout=60))
    had = replace(state, templates={(HTTP, CLIENT): TWO})
    assert trace(TO_HTTP, had).verdicts() == {Delivered(TWO): 1}
    other = replace(TO_HTTP, source=parse_address("10.244.1.8"))
    assert len(trace(other, had).verdicts()) == 2
    draining = replace(had, servers={HTTP: [Server(ONE, 1), Server(TWO, 0)]})
    assert trace(TO_HTTP, draining).verdicts() == {Delivered(ONE): 1}


@pytest.mark.parametrize(
    ("endpoint", "masquerade"), [(ONE, Masquerade.SERVICE_ADDRESS), (None, None)]
)
def test_the_node_sends_from_the_service_address_and_is_masqueraded(
    stage: Stage, endpoint: Backend | None, masquerade: Masquerade | None
) -> None:
    state = programmed(stage, service(*([endpoint] if endpoint else []), use=_use(endpoint)))
    packet = Packet(HTTP.address, HTTP.address, Protocol.TCP, HTTP.port)
    wanted = Rejected(RejectWith.TCP_RESET)
    verdict = Delivered(endpoint, masquerade) if endpoint and masquerade else wanted
    assert trace(packet, state).verdicts() == {verdict: 1}


def _use(endpoint: Backend | None) -> Use:
    return Use.CLUSTER if endpoint else Use.REJECT


def test_a_packet_that_only_passes_through_is_left_alone(stage: Stage) -> None:
    state = programmed(stage, service(ONE))
    passing = replace(TO_HTTP, destination=parse_address("203.0.113.9"))
    assert trace(passing, state).paths[0].steps == ()
    assert trace(passing, state).verdicts() == {Untouched(): 1}


def test_steps_name_the_elements_and_the_kernel_objects(stage: Stage) -> None:
    node_port = service(ONE, scope=Scope.NODE_PORT, address=NODE, affinity_timeout=60)
    packet = Packet(parse_address("203.0.113.9"), NODE, Protocol.TCP, HTTP.port, "eth0")
    state = replace(programmed(stage, node_port), node_addresses=LOCAL | {NODE})
    assert str(trace(packet, state)).splitlines()[1:] == [
        "  new-connections: marked to be masqueraded: "
        'masqueraded4 { 172.30.0.11 . tcp . 80 comment "shop/web:http" }',
        "  ipvs: taken by the virtual service: tcp 172.30.0.11:80 rr persistent 60",
        "  ipvs: scheduled to the real server: 10.244.2.1:8080 weight 1",
        "  nat-postrouting: masqueraded by its mark",
        "  100.0000% delivered to 10.244.2.1:8080, masqueraded by its mark",
    ]


CONNECTIONS = """\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 0AF40107 9C40 0A600001 0050 0AF40201 1F90 ESTABLISHED     899
TCP 0AF40107 0000 0A600001 0050 0AF40202 1F90 NONE             59
IP  0AF40107 0000 50000004 0000 0AF40203 0000 NONE             59
UDP fd10:0001:0000:0000:0000:0000:0000:0007 0000 fd96:0000:0000:0000:0000:0000:0000:0001 0035 \
fd10:0002:0000:0000:0000:0000:0000:0001 14E9 NONE             59
"""
BY_MARK = Virtual(Family.IPV4, 0, Address(b""), Port(0), 0x50000004)


@pytest.mark.parametrize(
    ("virtual", "client", "had"),
    [
        (HTTP, "10.244.1.7", TWO),
        (HTTP, "10.244.1.8", None),
        (HTTP._replace(port=Port(81)), "10.244.1.7", None),
        (BY_MARK, "10.244.1.7", THREE[:-2] + b"\0\0"),
        (
            Virtual(Family.IPV6, 17, parse_address("fd96::1"), Port(53)),
            "fd10:1::7",
            parse_address("fd10:2::1") + (5353).to_bytes(2, "big"),
        ),
    ],
)
def test_persistence_templates_are_found(virtual: Virtual, client: str, had: bytes | None) -> None:
    assert find_template(CONNECTIONS.splitlines(), virtual, parse_address(client)) == had
