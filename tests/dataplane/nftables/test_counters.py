"""Elements that count connections: all of them with --endpoint-counters, else none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import msgspec
import pytest
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.network import Network
from pyproxy_lab.probe import probe

from pyproxy.dataplane.interface import Changes, NodeRouting
from pyproxy.dataplane.nftables import schema
from pyproxy.dataplane.nftables.base_rules import NftablesOptions
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.errors import StaleStateError
from pyproxy.model.address import Family, Protocol
from pyproxy.model.destination import Destination, parse_destination
from pyproxy.netlink import element_counters, elements
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.policy.routing import ServiceRouting
from tests.dataplane.nftables.scenes import compiled
from tests.dataplane.nftables.test_dataplane import held
from tests.dataplane.nftables.test_kernel_trace import HOME, service
from tests.waiting import RESPONSE_TIMEOUT

COUNTING = NftablesOptions(endpoint_counters=True)
PLAIN = NftablesOptions()
COUNTED = [kind.of(family) for kind in schema.COUNTED for family in Family]

WEB = service("web", HOME, "10.244.1.11", "10.244.2.11")
MORE = service("web", HOME, "10.244.1.11", "10.244.2.11", "10.244.1.12")


@contextmanager
def serving(namespace: Namespace, options: NftablesOptions) -> Iterator[NftablesDataplane]:
    """A dataplane of an agent that starts on whatever is there."""
    made = namespace.call(lambda: NftablesDataplane(options))
    try:
        yield made
    finally:
        made.close()


def program(namespace: Namespace, dataplane: NftablesDataplane, *routings: ServiceRouting) -> None:
    plan = dataplane.plan_full(routings, NodeRouting())
    assert namespace.call(lambda: dataplane.commit(plan)) == ()


def counts(namespace: Namespace, set_name: str) -> dict[bytes, int]:
    netlink = namespace.call(Nfnetlink)
    try:
        return element_counters.read_packet_counts(
            netlink.dump(elements.get_elements(TABLE, set_name))
        )
    finally:
        netlink.close()


def replaced(namespace: Namespace, options: NftablesOptions) -> None:
    """An agent with other options starts: at its first try the table is replaced."""
    with serving(namespace, options) as dataplane:
        with pytest.raises(StaleStateError, match="replaced"):
            program(namespace, dataplane, WEB)
        program(namespace, dataplane, WEB)
        assert not dataplane.plan_full([WEB], NodeRouting())
        change = dataplane.plan(Changes({MORE.name: MORE}))
        assert namespace.call(lambda: dataplane.commit(change)) == ()
    assert held(namespace) == compiled([MORE])


@pytest.mark.kernel
def test_every_element_has_a_counter_once_the_option_is_on(
    namespace: Namespace,
) -> None:
    with serving(namespace, PLAIN) as dataplane:
        dataplane.cleanup()
        program(namespace, dataplane, WEB)
    replaced(namespace, COUNTING)
    table = held(namespace)
    for name in COUNTED:
        assert counts(namespace, name).keys() == table.get(name, {}).keys()
    listing = namespace.run(["nft", "list", "table", "inet", TABLE]).stdout
    assert listing.count("counter packets 0 bytes 0") == 4
    namespace.run(["nft", "-f", "-"], text=f"delete table inet {TABLE}\n{listing}")
    assert held(namespace) == table
    replaced(namespace, PLAIN)
    assert not any(counts(namespace, name) for name in COUNTED)


@pytest.mark.packets
def test_a_connection_is_counted_once_at_its_frontend_and_once_at_its_endpoint() -> None:
    udp_and_tcp = msgspec.structs.replace(WEB, ports=(*WEB.ports, *udp(WEB).ports))
    with Network() as network:
        namespace = network.namespace("na")
        with serving(namespace, COUNTING) as dataplane:
            program(namespace, dataplane, udp_and_tcp)
        for target in ("tcp", "udp"):
            kind = Protocol[target.upper()]
            ask = partial(twenty_times, parse_destination(f"10.96.0.1:80/{target}"))
            reached = network.namespace("a2").call(ask)
            assert reached.total() == 20
            (frontend,) = (
                count for key, count in counts(namespace, "services4").items() if key[4] == kind
            )
            picked = {
                key: count
                for key, count in counts(namespace, "endpoints4").items()
                if key[4] == kind
            }
            assert frontend == 20
            assert sorted(picked.values()) == sorted(reached.values())


def twenty_times(target: Destination) -> Counter[str]:
    # Each from its own source port: a packet from a port used just before may belong to an
    # established flow, which is not looked up.
    reached: Counter[str] = Counter()
    for port in range(20_001, 20_021):
        reached.update(probe(target, timeout=RESPONSE_TIMEOUT, source_port=port).reached)
    return reached


def udp(routing: ServiceRouting) -> ServiceRouting:
    ports = tuple(msgspec.structs.replace(port, protocol=Protocol.UDP) for port in routing.ports)
    return msgspec.structs.replace(routing, ports=ports)
