"""Which flows a Service's change makes stale: tables of cases, and properties."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.dataplane.conntrack.frontends import (
    GONE,
    ClientRanges,
    FlowTarget,
    FrontendKey,
    Frontends,
    is_stale,
)
from pyproxy.model.address import (
    Address,
    Backend,
    Family,
    Network,
    Port,
    Protocol,
    backend,
    parse_address,
    parse_network,
)
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.flows import Flow
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use

NAME = ObjectName("shop", "dns")
ADDRESSES = {
    Family.IPV4: ("10.96.0.10", "10.244.1.{}", "172.30.0.100", "0.0.0.0/0"),
    Family.IPV6: ("fd00:10:96::a", "fd10:1::{}", "fd30::100", "::/0"),
}


def place(text: str, port: int) -> Backend:
    return backend(parse_address(text), Port(port))


def frontend_of(family: Family) -> Backend:
    return place(ADDRESSES[family][0], 53)


def pod(family: Family, number: int) -> Backend:
    return place(ADDRESSES[family][1].format(number), 5353)


def client(family: Family) -> Backend:
    return place(ADDRESSES[family][2], 40000)


def flow(family: Family, to: Backend, by: Backend | None = None) -> Flow:
    return Flow(Protocol.UDP, client(family), by or frontend_of(family), to)


def target(*backends: Backend, sources: tuple[str, ...] = ()) -> FlowTarget:
    ranges = ClientRanges.of(map(parse_network, sources)) if sources else None
    return FlowTarget(frozenset(backends), ranges)


def routing(
    *frontends: Frontend,
    name: ObjectName = NAME,
    family: Family = Family.IPV4,
    protocol: Protocol = Protocol.UDP,
    cluster: tuple[Backend, ...] = (),
    local: tuple[Backend, ...] = (),
    draining: tuple[Backend, ...] = (),
    sources: tuple[str, ...] = (),
) -> ServiceRouting:
    port = PortRouting("dns", family, protocol, frontends, cluster, local, draining=draining)
    return ServiceRouting(name, (port,), tuple(map(parse_network, sources)))


def at(address: str, use: Use, scope: Scope = Scope.CLUSTER_IP, port: int = 53) -> Frontend:
    return Frontend(scope, parse_address(address) if address else Address(b""), Port(port), use)


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize(
    ("now", "to", "expected"),
    [
        pytest.param([1, 2], 1, False, id="its backend is still there"),
        pytest.param([2, 3], 1, True, id="N to M: its backend is gone"),
        pytest.param([], 1, True, id="N to 0: it should be rejected"),
        pytest.param([1], 0, True, id="0 to N: it was never translated"),
        pytest.param([], 0, False, id="0 and 0: nothing would be different"),
        pytest.param(None, 1, True, id="the Service was deleted"),
        pytest.param(None, 0, False, id="the Service was deleted, the flow never translated"),
    ],
)
def test_a_flow_is_stale_where_a_new_one_would_go_elsewhere(
    family: Family, now: list[int] | None, to: int, expected: bool
) -> None:
    targets = GONE if now is None else (target(*(pod(family, number) for number in now)),)
    goes_to = pod(family, to) if to else frontend_of(family)
    assert is_stale(flow(family, goes_to), targets) is expected


def test_an_endpoint_that_changes_its_port_alone_is_another_endpoint() -> None:
    old = place("10.244.1.1", 5353)
    assert is_stale(flow(Family.IPV4, old), (target(place("10.244.1.1", 5354)),))


@pytest.mark.parametrize("family", Family)
def test_two_services_at_one_address_keep_each_others_flows(family: Family) -> None:
    targets = (target(pod(family, 1)), target(pod(family, 2)))
    assert not is_stale(flow(family, pod(family, 2)), targets)
    assert is_stale(flow(family, pod(family, 3)), targets)


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ((), False),
        (("172.30.0.0/24",), False),
        (("192.0.2.0/24",), True),
        (("192.0.2.0/24", "172.30.0.100/32"), False),
        (("fd30::/64",), True),
    ],
)
def test_a_flow_is_stale_if_no_source_range_has_its_client(
    sources: tuple[str, ...], expected: bool
) -> None:
    family = Family.IPV4
    with_ranges = (target(pod(family, 1), sources=sources),)
    assert is_stale(flow(family, pod(family, 1)), with_ranges) is expected


@given(
    st.lists(
        st.builds(
            lambda head, prefix: parse_network(f"{head}/{prefix}"),
            st.sampled_from(["10.0.0.0", "10.0.0.128", "10.0.1.0", "0.0.0.0", "255.255.255.0"]),
            st.integers(0, 32),
        )
        | st.sampled_from([parse_network("::/0"), parse_network("fd00::/9")]),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["10.0.0.0", "10.0.0.129", "10.0.1.255", "255.255.255.255", "fd01::1", "::"]),
)
def test_joined_ranges_have_the_addresses_of_their_networks(
    networks: list[Network], client: str
) -> None:
    address = parse_address(client)
    expected = any(address in network for network in networks)
    assert (address in ClientRanges.of(networks)) is expected


def test_an_untranslated_flow_outside_the_source_ranges_is_left_alone() -> None:
    with_ranges = (target(pod(Family.IPV4, 1), sources=("192.0.2.0/24",)),)
    assert not is_stale(flow(Family.IPV4, frontend_of(Family.IPV4)), with_ranges)


def test_source_ranges_do_not_apply_to_the_node_itself() -> None:
    to = frontend_of(Family.IPV4)
    itself = Flow(Protocol.UDP, Backend(to[:-2] + b"\x99\x99"), to, pod(Family.IPV4, 1))
    assert not is_stale(itself, (target(pod(Family.IPV4, 1), sources=("192.0.2.0/24",)),))


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize(
    ("use", "usable"),
    [
        (Use.CLUSTER, {1, 2, 9}),
        (Use.LOCAL, {2, 9}),
        (Use.SPLIT, {1, 2, 3, 9}),
        (Use.REJECT, set()),
        (Use.DROP, set()),
    ],
)
def test_each_use_names_its_endpoints(
    family: Family, scope: Scope, use: Use, usable: set[int]
) -> None:
    frontends = Frontends()
    address = "" if scope is Scope.NODE_PORT else ADDRESSES[family][0]
    local = (2, 3) if use is Use.SPLIT else (2,)
    frontends.replace(
        NAME,
        routing(
            at(address, use, scope),
            family=family,
            cluster=(pod(family, 1), pod(family, 2)),
            local=tuple(pod(family, number) for number in local),
            draining=(pod(family, 9),),
        ),
    )
    destination = frontend_of(family)[-2:] if not address else frontend_of(family)
    (found,) = frontends.targets(family, Protocol.UDP)[destination]
    assert found.backends == {pod(family, number) for number in usable}


A = pod(Family.IPV4, 1)
B = pod(Family.IPV4, 2)
OPEN = at("10.96.0.10", Use.CLUSTER)
NO_ENDPOINT_SERVICES = at("10.96.0.10", Use.REJECT)
BALANCED = at("192.0.2.10", Use.CLUSTER, Scope.LOAD_BALANCER)
KEY = FrontendKey(Family.IPV4, Protocol.UDP, frontend_of(Family.IPV4))
BALANCED_KEY = FrontendKey(Family.IPV4, Protocol.UDP, place("192.0.2.10", 53))


@pytest.mark.parametrize(
    ("before", "after", "keys"),
    [
        pytest.param(None, routing(OPEN, cluster=(A,)), {KEY}, id="new"),
        pytest.param(None, routing(NO_ENDPOINT_SERVICES), set(), id="new, without endpoints"),
        pytest.param(routing(OPEN, cluster=(A,)), routing(OPEN, cluster=(A,)), set(), id="same"),
        pytest.param(routing(OPEN, cluster=(A,)), routing(OPEN, cluster=(A, B)), set(), id="more"),
        pytest.param(routing(OPEN, cluster=(A, B)), routing(OPEN, cluster=(A,)), {KEY}, id="fewer"),
        pytest.param(routing(OPEN, cluster=(A,)), routing(OPEN, cluster=(B,)), {KEY}, id="other"),
        pytest.param(
            routing(OPEN, cluster=(A,)),
            routing(OPEN, cluster=(B,), draining=(A,)),
            set(),
            id="other, and the first drains",
        ),
        pytest.param(
            routing(OPEN, cluster=(B,), draining=(A,)),
            routing(OPEN, cluster=(B,)),
            {KEY},
            id="drained",
        ),
        pytest.param(
            routing(OPEN, cluster=(A,)), routing(NO_ENDPOINT_SERVICES), {KEY}, id="none left"
        ),
        pytest.param(
            routing(NO_ENDPOINT_SERVICES), routing(OPEN, cluster=(A,)), {KEY}, id="the first"
        ),
        pytest.param(routing(OPEN, cluster=(A,)), None, {KEY}, id="deleted"),
        pytest.param(routing(NO_ENDPOINT_SERVICES), None, set(), id="deleted while rejected"),
        pytest.param(
            routing(OPEN, BALANCED, cluster=(A,)),
            routing(OPEN, cluster=(A,)),
            {BALANCED_KEY},
            id="an address removed",
        ),
        pytest.param(
            routing(OPEN, BALANCED, cluster=(A,)),
            routing(OPEN, BALANCED, cluster=(A,), sources=("192.0.2.0/24",)),
            {BALANCED_KEY},
            id="a source range",
        ),
        pytest.param(
            routing(OPEN, cluster=(A,), protocol=Protocol.TCP), None, set(), id="TCP is never ours"
        ),
    ],
)
def test_a_change_names_the_frontends_that_may_have_stale_flows(
    before: ServiceRouting | None, after: ServiceRouting | None, keys: set[FrontendKey]
) -> None:
    frontends = Frontends()
    frontends.replace(NAME, before)
    assert frontends.replace(NAME, after) == keys


def test_a_deleted_service_leaves_no_targets() -> None:
    frontends = Frontends()
    other = ObjectName("shop", "other")
    frontends.replace_all([routing(OPEN, cluster=(A,)), routing(OPEN, cluster=(B,), name=other)])
    targets = frontends.targets(Family.IPV4, Protocol.UDP)
    assert {found.backends for found in targets[KEY.destination]} == {
        frozenset({A}),
        frozenset({B}),
    }
    assert frontends.replace_all([routing(OPEN, cluster=(B,), name=other)]) == {KEY}
    assert [found.backends for found in targets[KEY.destination]] == [{B}]
    assert frontends.replace_all([]) == {KEY}
    assert not targets
    assert not frontends.groups()


uses = st.sampled_from(Use)
pods = st.sets(st.integers(1, 4), max_size=4).map(
    lambda numbers: tuple(pod(Family.IPV4, number) for number in sorted(numbers))
)
routings = st.none() | st.builds(
    lambda use, cluster, local, sources: routing(
        at("10.96.0.10", use, Scope.LOAD_BALANCER), cluster=cluster, local=local, sources=sources
    ),
    uses,
    pods,
    pods,
    st.sampled_from([(), ("192.0.2.0/24",), ("172.30.0.0/16",)]),
)


@given(st.lists(routings, min_size=2, max_size=6))
def test_a_change_that_names_no_frontend_makes_nothing_stale(
    history: list[ServiceRouting | None],
) -> None:
    """A flow that was not stale before such a change is not stale after it."""
    frontends = Frontends()
    targets = frontends.targets(Family.IPV4, Protocol.UDP)
    goals = [*(pod(Family.IPV4, number) for number in range(1, 5)), KEY.destination]
    flows = [flow(Family.IPV4, Backend(to)) for to in goals]
    frontends.replace(NAME, history[0])
    for _, after in itertools.pairwise(history):
        before = targets.get(KEY.destination, GONE)
        named = frontends.replace(NAME, after)
        now = targets.get(KEY.destination, GONE)
        if not named:
            fresh = [one for one in flows if not is_stale(one, before)]
            assert not [one for one in fresh if is_stale(one, now)]


@given(routings, routings)
def test_frontends_depend_on_the_last_routings_alone(
    first: ServiceRouting | None, last: ServiceRouting | None
) -> None:
    walked, direct = Frontends(), Frontends()
    walked.replace(NAME, first)
    walked.replace(NAME, last)
    direct.replace(NAME, last)
    group = Family.IPV4, Protocol.UDP
    assert walked.targets(*group) == direct.targets(*group)


@given(st.sets(st.integers(1, 4)), st.integers(1, 4))
def test_a_flow_is_fresh_exactly_where_its_endpoint_is_one_of_the_allowed(
    numbers: set[int], to: int
) -> None:
    allowed = (target(*(pod(Family.IPV6, number) for number in numbers)),)
    assert is_stale(flow(Family.IPV6, pod(Family.IPV6, to)), allowed) is (to not in numbers)
