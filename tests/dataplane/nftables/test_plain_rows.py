"""Services with one cluster IP, which are packed without rows in between."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nft import schema as nft
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables.compile import compile_all, hairpin_rows
from pyproxy.dataplane.nftables.plain_rows import PlainRows
from pyproxy.dataplane.nftables.plan import targets
from pyproxy.dataplane.nftables.schema import ENDPOINTS, OFFLOAD_SERVICES, SERVICES, TABLE
from pyproxy.model.address import Address, Backend, Family, Port, Protocol
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import Shape, add_elements
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use
from tests.dataplane.nftables.scenes import Scene, scenes
from tests.examples import examples


def plain(
    family: Family,
    number: int,
    name: str,
    count: int,
    protocol: Protocol,
    *,
    offload: bool = False,
) -> ServiceRouting:
    size = family.bits // 8
    backends = [
        Backend(bytes(size - 4) + each.to_bytes(4, "big") + b"\x1f\x90") for each in range(count)
    ]
    frontend = Frontend(
        Scope.CLUSTER_IP, Address(number.to_bytes(size, "big")), Port(80), Use.CLUSTER
    )
    port = PortRouting(
        "http" * (number % 2), family, protocol, (frontend,), tuple(backends), (), tuple(backends)
    )
    return ServiceRouting(ObjectName("shop", name), (port,), offload=offload)


KINDS = (SERVICES, ENDPOINTS, OFFLOAD_SERVICES, nft.CLUSTER_IPS)

ROUTINGS = st.lists(
    st.builds(
        plain,
        st.sampled_from(list(Family)),
        st.integers(1, 1000),
        st.text(max_size=200),
        # A message has 1,150 endpoints with IPv4.
        st.sampled_from([1, 2, 3, 33, 2_000]),
        st.sampled_from(list(Protocol)),
        offload=st.booleans(),
    ),
    max_size=20,
    unique_by=lambda each: each.ports[0].frontends[0].address,
)


@settings(max_examples=examples(100))
@given(ROUTINGS)
def test_the_messages_are_those_of_the_rows(routings: list[ServiceRouting]) -> None:
    rows = PlainRows()
    assert all(rows.add(each) for each in routings)
    compiled = compile_all(routings, NodeRouting(), 10_000)
    wanted: list[bytes] = []
    for family in Family:
        for kind in KINDS:
            name = kind.of(family)
            found = compiled.table.get(name, {})
            messages = add_elements(TABLE, name, found, Shape.EXACT) if found else ()
            wanted += [each.message.body for each in messages]
    assert [each.message.body for each in rows.messages()] == wanted
    assert rows.targets == targets(compiled.table)
    others = [row for each in routings for row in hairpin_rows(each.ports[0])]
    assert sorted(rows.shared + others) == sorted(compiled.shared.elements())


@given(scenes())
def test_a_service_of_another_kind_is_left_as_it_is(scene: Scene) -> None:
    for routing in scene.undivided().values():
        rows = PlainRows()
        is_plain = rows.add(routing)
        table: Table = compile_all([routing], NodeRouting(), 10_000).table
        simple = {kind.of(family) for kind in KINDS for family in Family}
        if is_plain:
            assert table.keys() <= {*simple, *(nft.HAIRPIN.of(family) for family in Family)}
            written = sum(1 for _ in rows.messages())
            assert written == len(table.keys() & simple)
        else:
            assert not list(rows.messages())


def test_services_with_more_rows() -> None:
    routing = plain(Family.IPV4, 1, "web", 2, Protocol.TCP, offload=True)
    (port,) = routing.ports
    assert PlainRows().add(routing)
    assert not PlainRows().add(msgspec.structs.replace(routing, affinity_timeout=60))
    for terminating in ({"draining": port.cluster[:1]}, {"fallback": port.cluster}):
        # Their connections take no fast path, so they have rows of their own.
        other = msgspec.structs.replace(port, **terminating)
        assert not PlainRows().add(msgspec.structs.replace(routing, ports=(other,)))
