"""A Service on every kind of address, and doubles for a reconciler's clock, metrics and table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pyproxy.errors import TransientKernelError
from pyproxy.model.address import Address, Backend, Family, Port, Protocol, parse_address
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.conntrack import Conntrack, Deletion
from pyproxy.netlink.flows import Flow
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use
from tests.netlink.conntrack_entries import place

NAME = ObjectName("shop", "dns")
NODE_PORT = Port(30053)
SCOPES = {
    Family.IPV4: {
        Scope.CLUSTER_IP: "10.96.0.10",
        Scope.EXTERNAL_IP: "198.51.100.7",
        Scope.LOAD_BALANCER: "192.0.2.10",
        Scope.NODE_PORT: "172.30.0.11",
    },
    Family.IPV6: {
        Scope.CLUSTER_IP: "fd00:10:96::a",
        Scope.EXTERNAL_IP: "2001:db8::7",
        Scope.LOAD_BALANCER: "2001:db8::10",
        Scope.NODE_PORT: "fd30::11",
    },
}
CLIENTS = {Family.IPV4: "172.30.0.100", Family.IPV6: "fd30::100"}
PODS = {Family.IPV4: "10.244.1.{}", Family.IPV6: "fd10:1::{}"}
NODE = frozenset(parse_address(scopes[Scope.NODE_PORT]) for scopes in SCOPES.values())


def pod(family: Family, number: int) -> Backend:
    return place(PODS[family].format(number), 5353)


def goal(family: Family, scope: Scope) -> Backend:
    return place(SCOPES[family][scope], NODE_PORT if scope is Scope.NODE_PORT else 53)


def routing(
    pods: Sequence[int],
    families: Sequence[Family] = tuple(Family),
    protocol: Protocol = Protocol.UDP,
    name: ObjectName = NAME,
) -> ServiceRouting:
    """A Service on every kind of address, which sends to these pods, or rejects without any."""
    use = Use.CLUSTER if pods else Use.REJECT
    return ServiceRouting(
        name,
        tuple(
            PortRouting(
                "dns",
                family,
                protocol,
                tuple(
                    Frontend(
                        scope,
                        Address(b"") if scope is Scope.NODE_PORT else parse_address(address),
                        NODE_PORT if scope is Scope.NODE_PORT else Port(53),
                        use,
                    )
                    for scope, address in SCOPES[family].items()
                ),
                tuple(pod(family, number) for number in pods),
                (),
            )
            for family in families
        ),
    )


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Tally:
    """An observer that remembers each sweep."""

    def __init__(self) -> None:
        self.sweeps: list[tuple[Family, int]] = []

    def conntrack_finished(self, family: Family, seconds: float, deleted: int) -> None:
        assert seconds >= 0
        self.sweeps.append((family, deleted))

    def deleted(self) -> int:
        return sum(deleted for _, deleted in self.sweeps)


class Flaky:
    """The kernel's table, whose first deletions and reads fail."""

    def __init__(self, table: Conntrack, failures: int = 0, unreadable: int = 0) -> None:
        self._table = table
        self._failures = failures
        self._unreadable = unreadable
        self.selective = True
        self.asked: list[bytes] = []

    def flows(
        self, family: Family, protocol: Protocol, destination: bytes = b""
    ) -> Iterator[list[Flow]]:
        self.asked.append(destination)
        if self._unreadable:
            self._unreadable -= 1
            raise TransientKernelError("ENOBUFS", 105)
        return self._table.flows(family, protocol, destination)

    def delete(self, flows: Sequence[Flow]) -> Deletion:
        if not flows or not self._failures:
            return self._table.delete(flows)
        self._failures -= 1
        rest = self._table.delete(flows[1:])
        return Deletion(rest.deleted, ((flows[0], TransientKernelError("EBUSY", 16)),))
