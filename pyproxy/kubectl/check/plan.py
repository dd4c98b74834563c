"""The tests of a check: which pod connects to which address, and what it must find."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from pyproxy.kubectl.check.objects import PORT, TARGET_PORT, Pod

FROM_POD, FROM_NODE, FROM_SERVER = "pod", "node", "itself"
"""The sources: a pod, a pod in the node's network, and a server."""

AGENT, PODS, HEADLESS = "agent", "pods", "headless Service"
POD_ADDRESS = "pod address, no Service"
CLUSTER, UDP = "cluster IP", "cluster IP, UDP"
INTERNAL = "internalTrafficPolicy Local"
AFFINITY, EMPTY, HOST = "session affinity", "no endpoints", "endpoints in the nodes' network"
OWN_PORT, OTHER_PORT = "node port", "node port of another node"
OWN_LOCAL = "node port, externalTrafficPolicy Local"
OTHER_LOCAL = "node port of another node, externalTrafficPolicy Local"
HAIRPIN, ROLLOUT = "hairpin", "rollout under load"

_ENOUGH = 12.0
"""With k*(ln k + 12) tries, chance leaves out one of k endpoints once in 160,000 tests."""

_FEW = 8


class Target(msgspec.Struct, frozen=True, omit_defaults=True):
    """A destination and what is expected there, as `pod.Target` describes it."""

    address: str
    port: int
    tries: int
    protocol: str = "tcp"
    names: tuple[str, ...] = ()
    all: bool = False
    one: bool = False
    refused: bool = False


class ConnectionTest(msgspec.Struct, frozen=True):
    """One test from one pod; `service` is that which explain can be asked about, or empty."""

    name: str
    source: str
    node: str
    pod: str
    service: str
    target: Target

    @property
    def destination(self) -> str:
        """The destination as text."""
        address = f"[{self.target.address}]" if ":" in self.target.address else self.target.address
        return f"{address}:{self.target.port}/{self.target.protocol}"


class Service(msgspec.Struct, frozen=True):
    """The addresses of a Service that was created; `node_port` is 0 without one."""

    addresses: tuple[str, ...]
    node_port: int = 0


class Facts(msgspec.Struct, frozen=True):
    """Facts about the objects of a check; only pods that are ready are part of it.

    `addresses` are those of pods by name, `node_addresses` those of nodes by name.
    """

    pods: tuple[Pod, ...]
    addresses: Mapping[str, tuple[str, ...]]
    services: Mapping[str, Service]
    node_addresses: Mapping[str, tuple[str, ...]]


def tests(facts: Facts) -> Iterator[ConnectionTest]:
    """Yield all tests."""
    servers = _of(facts, "server")
    clients = _of(facts, "client")
    for source, pods in ((FROM_POD, clients), (FROM_NODE, _of(facts, "host"))):
        for pod in pods:
            for name, service, target in _from(facts, source, pod, servers):
                yield ConnectionTest(name, source, pod.node, pod.name, service, target)
    for pod in servers:
        for address in facts.services["internal"].addresses:
            target = Target(address, PORT, _FEW, names=(pod.server,))
            yield ConnectionTest(HAIRPIN, FROM_SERVER, pod.node, pod.name, "internal", target)


def _from(
    facts: Facts, source: str, pod: Pod, servers: Sequence[Pod]
) -> Iterator[tuple[str, str, Target]]:
    names = tuple(each.server for each in servers)
    for server in servers:
        for address in facts.addresses[server.name]:
            yield POD_ADDRESS, "", Target(address, TARGET_PORT, 2, names=(server.server,))
    yield from _cluster_ips(facts, source, pod, servers)
    nodes = sorted({each.node for each in servers} & set(facts.node_addresses))
    if pod.node in facts.node_addresses:
        for address in facts.node_addresses[pod.node]:
            yield OWN_PORT, "cluster", _every(facts, address, names)
            port = facts.services["local"].node_port
            yield OWN_LOCAL, "local", Target(address, port, _FEW, names=names)
    others = [node for node in nodes if node != pod.node]
    if not others:
        return
    # The next one in the order of names, so that each node is the other one of some node.
    other = next((node for node in others if node > pod.node), others[0])
    there = tuple(each.server for each in servers if each.node == other)
    for address in facts.node_addresses[other]:
        yield OTHER_PORT, "cluster", _every(facts, address, names)
        # The other node may take a client in a pod for one of its own, as kube-proxy does with the
        # cluster's CIDR. Its choice may then be an endpoint whose replies do not pass it.
        if source == FROM_NODE:
            port = facts.services["local"].node_port
            yield OTHER_LOCAL, "local", Target(address, port, _FEW, names=there)


def _cluster_ips(
    facts: Facts, source: str, pod: Pod, servers: Sequence[Pod]
) -> Iterator[tuple[str, str, Target]]:
    names = tuple(each.server for each in servers)
    here = tuple(each.server for each in servers if each.node == pod.node)
    hosts = tuple(each.server for each in _of(facts, "host"))
    rollout = tuple(each.server for each in _of(facts, "rollout"))
    of = facts.services
    for address in of["cluster"].addresses:
        yield CLUSTER, "cluster", Target(address, PORT, tries(len(names)), names=names, all=True)
        yield UDP, "cluster", Target(
            address, PORT, tries(len(names)), "udp", names=names, all=True
        )  # fmt: skip
    for address in of["internal"].addresses:
        if here:
            yield INTERNAL, "internal", Target(address, PORT, _FEW, names=here)
    for address in of["affinity"].addresses:
        yield AFFINITY, "affinity", Target(address, PORT, _FEW, names=names, one=True)
    for address in of["empty"].addresses:
        yield EMPTY, "empty", Target(address, PORT, 2, refused=True)
    # A pod in the nodes' network has few addresses, often of one family.
    for address in _served(facts, "host", hosts):
        yield HOST, "host", Target(address, PORT, tries(len(hosts)), names=hosts, all=True)
    for address in of["rollout"].addresses:
        if source == FROM_POD and rollout:
            yield ROLLOUT, "rollout", Target(
                address, PORT, tries(len(rollout)), names=rollout, all=True
            )  # fmt: skip


def tries(endpoints: int) -> int:
    """Return the number of connections after which each endpoint was surely used."""
    return math.ceil(endpoints * (math.log(max(endpoints, 1)) + _ENOUGH))


def _every(facts: Facts, address: str, names: tuple[str, ...]) -> Target:
    port = facts.services["cluster"].node_port
    return Target(address, port, tries(len(names)), names=names, all=True)


def _served(facts: Facts, role: str, names: Sequence[str]) -> Iterator[str]:
    """Yield the addresses of a Service in whose family all of its pods have an address."""
    pods = _of(facts, role)
    for address in facts.services[role].addresses:
        family = ":" in address
        if names and all(any((":" in a) == family for a in facts.addresses[p.name]) for p in pods):
            yield address


def _of(facts: Facts, role: str) -> tuple[Pod, ...]:
    return tuple(each for each in facts.pods if each.role == role)
