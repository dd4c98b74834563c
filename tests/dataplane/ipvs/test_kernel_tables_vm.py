"""A real kernel's tables after commits, restarts, foreign changes and cleanup."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import Changes, Failure, NodeRouting
from pyproxy.dataplane.ipvs.dataplane import IpvsDataplane
from pyproxy.dataplane.ipvs.kernel import Kernel
from pyproxy.dataplane.ipvs.mode import MODE
from pyproxy.dataplane.ipvs.plan import IpvsPlan
from pyproxy.dataplane.ipvs.ruleset import Options
from pyproxy.model.address import Backend, backend, parse_address, parse_network
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.ipvs import Timeouts, Virtual
from pyproxy.policy.routing import Scope, Use
from tests.dataplane.ipvs.stage import Routings
from tests.dataplane.ipvs.test_dataplane import (
    FOREIGN,
    HTTP,
    NODE,
    ONE,
    THREE,
    TWO,
    WEB,
    many,
    of,
    service,
)
from tests.namespaces import empty_namespace

pytestmark = pytest.mark.vm

T = TypeVar("T")
PODS = NodeRouting((parse_network("10.244.0.0/16"), parse_network("fd10::/16")))


class IpvsNode:
    """A namespace with a dataplane, whose calls run inside it."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.now = 1000.0
        self.dataplane = self.restarted()
        self.routings: Routings = {}

    def call(self, function: Callable[[], T]) -> T:
        return self.namespace.call(function)

    def restarted(self, timeouts: Timeouts = Timeouts()) -> IpvsDataplane:  # noqa: B008
        def make() -> IpvsDataplane:
            made = IpvsDataplane(Options(), lambda: self.now, timeouts=timeouts)
            made.prepare()
            return made

        self.dataplane = self.call(make)
        return self.dataplane

    def begin(self, routings: Routings) -> tuple[Failure, ...]:
        self.routings = dict(routings)
        return self.call(lambda: self.dataplane.commit(self.plan()))

    def plan(self) -> IpvsPlan:
        return self.call(lambda: self.dataplane.plan_full(self.routings.values(), PODS))

    def change(self, routings: Routings) -> tuple[Failure, ...]:
        changed = Changes({**dict.fromkeys(self.routings), **routings})
        self.routings = dict(routings)
        return self.call(lambda: self.dataplane.commit(self.dataplane.plan(changed)))

    def table(self) -> dict[Virtual, dict[Backend, int]]:
        def read() -> dict[Virtual, dict[Backend, int]]:
            kernel = Kernel()
            kernel.prepare()
            found = {
                virtual: {each.backend: each.weight for each in kernel.servers(virtual)}
                for virtual in kernel.virtuals()
            }
            kernel.close()
            return found

        return self.call(read)

    def sh(self, command: str) -> str:
        return self.namespace.run(["sh", "-c", command]).stdout


@pytest.fixture
def node() -> Iterator[IpvsNode]:
    links = ["link set lo up", "link add eth0 type dummy", "addr add 172.30.0.11/24 dev eth0"]
    with empty_namespace("ipvs") as namespace:
        namespace.ip(links)
        yield IpvsNode(namespace)


def everything() -> Routings:
    return of(
        service(ONE, TWO),
        service(ONE, TWO, use=Use.SPLIT, scope=Scope.EXTERNAL_IP, local=(ONE,),
                address=parse_address("192.0.2.1"), name=ObjectName("shop", "split")),
        service(ONE, scope=Scope.NODE_PORT, address=NODE, name=ObjectName("shop", "node")),
        service(use=Use.REJECT, address=parse_address("10.96.0.2"), name=ObjectName("shop", "no")),
        service(TWO, address=parse_address("10.96.0.3"), name=ObjectName("shop", "affinity"),
                affinity_timeout=60, scheduler="mh"),
    )  # fmt: skip


def test_a_restart_writes_nothing(node: IpvsNode) -> None:
    assert not node.begin(everything())
    node.restarted()
    plan = node.plan()
    assert not plan, str(plan)


def test_timeouts_are_set_and_one_of_0_is_left_as_it_is(
    node: IpvsNode,
) -> None:
    node.restarted(Timeouts(tcp=1200, udp=60))
    shown = node.sh("ipvsadm -L --timeout")
    assert shown.split()[-3:] == ["1200", "120", "60"], shown  # 120 is the kernel's own
    assert node.dataplane.messages_sent == 1
    again = node.restarted(Timeouts(tcp=1200, tcp_fin=0, udp=60))
    assert again.messages_sent == 0


def test_a_restart_reads_back_all_of_many_services_beside_those_of_another_namespace(
    node: IpvsNode,
) -> None:
    with empty_namespace("ipvs") as other:
        another = IpvsNode(other)
        another.begin(of(*many(30)))
        node.begin(of(*many(40)))
        node.restarted()
        plan = node.plan()
        assert not plan, str(plan)


def test_one_endpoint_is_one_message(node: IpvsNode) -> None:
    others = many(100)
    node.begin(of(*others, service(ONE, TWO)))
    sent = node.dataplane.messages_sent
    node.change(of(*others, service(ONE, TWO, THREE)))
    assert node.dataplane.messages_sent == sent + 1
    assert node.table()[HTTP] == {ONE: 1, TWO: 1, THREE: 1}


def test_a_server_without_connections_is_removed_at_the_next_poll(node: IpvsNode) -> None:
    node.begin(of(service(ONE, TWO)))
    node.change(of(service(ONE)))
    assert node.table() == {HTTP: {ONE: 1, TWO: 0}}
    node.call(node.dataplane.tick)
    assert node.table() == {HTTP: {ONE: 1}}
    node.change({})
    node.call(node.dataplane.tick)
    assert node.table() == {}


def test_foreign_virtual_services_survive_start_changes_and_cleanup(
    node: IpvsNode,
) -> None:
    node.sh("ipvsadm -A -t 172.30.0.11:5432 -s wrr")
    node.sh("ipvsadm -a -t 172.30.0.11:5432 -r 10.244.2.1:8080 -m -w 3")
    node.sh("ipvsadm -A -f 7 -s lc")
    before = node.sh("ipvsadm -Sn")
    assert not node.begin(everything())
    node.change(of(service(THREE)))
    node.restarted()
    node.begin(of(service(TWO)))
    assert node.table()[FOREIGN] == {ONE: 3}
    node.call(node.dataplane.cleanup)
    assert node.sh("ipvsadm -Sn") == before
    assert "kube-ipvs0" not in node.sh("ip link")
    assert "pyproxy-ipvs" not in node.sh("nft list tables")


@pytest.mark.parametrize(
    "harm",
    [
        "ipvsadm -C",
        "ipvsadm -D -t 10.96.0.1:80",
        "ipvsadm -d -t 10.96.0.1:80 -r 10.244.2.1:8080",
        "ipvsadm -e -t 10.96.0.1:80 -r 10.244.2.1:8080 -m -w 9",
        "ipvsadm -E -t 10.96.0.1:80 -s wlc",
        "ip addr del 10.96.0.1/32 dev kube-ipvs0",
        "ip link del kube-ipvs0",
    ],
)
def test_a_change_by_another_program_is_noticed_at_the_next_poll_and_repaired(
    node: IpvsNode, harm: str
) -> None:
    node.begin(everything())
    right = node.sh("ipvsadm -Sn"), node.sh("ip -o addr show kube-ipvs0 | sort")
    assert node.call(node.dataplane.tick) is None
    node.sh(harm)
    assert node.call(node.dataplane.tick) is not None
    node.begin(everything())
    after = node.sh("ipvsadm -Sn"), node.sh("ip -o addr show kube-ipvs0 | sort")
    assert sorted(after[0].splitlines()) == sorted(right[0].splitlines())
    assert [line.split()[3] for line in after[1].splitlines()] == [
        line.split()[3] for line in right[1].splitlines()
    ]
    assert node.call(node.dataplane.tick) is None


@pytest.mark.parametrize("method", ["-g", "-i"])
def test_another_forwarding_method_is_noticed_and_repaired(node: IpvsNode, method: str) -> None:
    # ipvsadm gives a server that is not masqueraded the port of its virtual service.
    routings = of(service(backend(parse_address("10.244.2.1"), HTTP.port)))
    node.begin(routings)
    right = node.sh("ipvsadm -Sn")
    assert node.call(node.dataplane.tick) is None
    node.sh(f"ipvsadm -e -t 10.96.0.1:80 -r 10.244.2.1:80 {method} -w 1")
    assert node.sh("ipvsadm -Sn") != right
    assert node.call(node.dataplane.tick) is not None
    node.begin(routings)
    assert node.sh("ipvsadm -Sn") == right
    assert node.call(node.dataplane.tick) is None


def test_a_service_that_the_kernel_rejects_is_left_out_alone(node: IpvsNode) -> None:
    node.sh("ipvsadm -A -t 172.30.0.11:80 -s wrr")
    own = service(ONE, scope=Scope.NODE_PORT, address=NODE)
    (other,) = many(1)
    (failure,) = node.begin(of(own, other))
    assert failure.name == WEB
    assert len(node.table()) == 2


def test_the_table_may_be_deleted_while_no_agent_runs(node: IpvsNode) -> None:
    plain = {
        name: each for name, each in everything().items() if name != ObjectName("shop", "split")
    }
    node.sh("ipvsadm -A -t 172.30.0.11:5432 -s wrr")
    assert not node.begin(plain)
    right = node.sh("ipvsadm -Sn"), node.sh("nft list table inet pyproxy-ipvs")
    node.sh("nft flush ruleset")
    node.restarted()
    assert not node.begin(plain)
    after = node.sh("ipvsadm -Sn"), node.sh("nft list table inet pyproxy-ipvs")
    assert [sorted(text.splitlines()) for text in after] == [
        sorted(text.splitlines()) for text in right
    ]


def test_cleanup_of_other_modes_finds_the_device_without_the_table(node: IpvsNode) -> None:
    assert not node.begin(of(service(ONE), *many(3)))
    node.sh("nft flush ruleset")
    # kube-proxy's device has no alias.
    node.sh("ip link set kube-ipvs0 alias ''")
    assert node.call(lambda: list(MODE.remove_leftovers(None))) == []
    assert len(node.table()) == 4
    node.sh("ip link set kube-ipvs0 alias pyproxy")
    assert len(node.call(lambda: list(MODE.remove_leftovers(None)))) == 1
    assert node.table() == {}
    assert "kube-ipvs0" not in node.sh("ip link")
