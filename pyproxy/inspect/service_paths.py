"""The packets of a Service that may pass through this node: from its routing, without the kernel.

Bounded: of many ports and endpoints it takes a few, spread over nodes and networks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice, zip_longest

import msgspec

from pyproxy.dataplane import modes
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.hostnet.packet import FirstPacket, Origin, PacketPath, ServicePaths
from pyproxy.inspect.agent_facts import AgentFacts
from pyproxy.inspect.facts import PortFacts, target_ports
from pyproxy.model.address import (
    Address,
    Backend,
    Family,
    Mark,
    Network,
    Port,
    backend,
    family_of,
    parse_network,
)
from pyproxy.policy.routing import Frontend, PortRouting, Scope, Use

_LOOPBACK = (parse_network("127.0.0.0/8"), parse_network("::1/128"))
MAX_ENDPOINTS = 16
MAX_FURTHER = 256
MAX_FRONTENDS = 4
"""Frontends of one port that are examined: one of each kind of address first."""


class _Client(msgspec.Struct, frozen=True):
    """The sender of packets: its address if the user gave one, else that of one of `pods`."""

    origin: Origin
    address: Address | None
    pods: Sequence[Address]

    def sample(self, endpoint: Backend) -> Address | None:
        """Return an address of such a sender other than the endpoint's, None if none is known."""
        if self.address is not None or self.origin is not Origin.POD:
            return self.address
        return next((each for each in self.pods if each != endpoint[:-2]), None)


class _Chosen(msgspec.Struct, frozen=True):
    """The endpoints of a port that are examined, of all and of those that Local uses."""

    cluster: Sequence[Backend]
    local: Sequence[Backend]

    def used(self, use: Use, origin: Origin) -> Sequence[Backend]:
        """Return those that a frontend of this use sends packets of the origin to."""
        if use is Use.CLUSTER or (use is Use.SPLIT and origin is not Origin.EXTERNAL):
            return self.cluster
        return self.local if use in (Use.LOCAL, Use.SPLIT) else ()


def service_paths(
    agent: AgentFacts, client: Address | None, own: Collection[Address] = ()
) -> ServicePaths:
    """Return the paths of the target's packets; with a client, only those of its packets.

    `own` are addresses of this node besides those of the Node object.
    """
    ports = [
        (port, port.routing)
        for port in target_ports(agent)
        if port.routing and port.routing.frontends
    ]
    if client is not None:
        ports = [each for each in ports if each[0].family is family_of(client)]
    if not ports:
        return ServicePaths(reason="no frontend of the target is programmed")
    used = {b for _, routing in ports for b in (*routing.cluster, *routing.local)}
    if not used:
        return ServicePaths(reason="no endpoint is used")
    sender = _given(agent, client, own)
    share = max(1, MAX_ENDPOINTS // len(ports))
    paths: list[PacketPath] = []
    others: dict[Backend, None] = {}
    for number, (port, routing) in enumerate(ports[:MAX_ENDPOINTS]):
        cluster = spread(port, routing.cluster, agent)
        others |= dict.fromkeys(group[0] for group in cluster.groups[:MAX_FURTHER])
        chosen = cluster.choose(share, number * share)
        local = spread(port, routing.local, agent).choose(share)
        paths += _port_paths(agent, port, routing, sender, _Chosen(chosen, local))
    if not paths:
        return ServicePaths(reason="no packet of this client reaches an endpoint")
    examined = {path.leaving.target for path in paths}
    node, mode = agent.node, modes.of(agent.settings.mode)
    sysctls = mode.kernel_settings(agent.settings)
    return ServicePaths(
        paths=tuple(paths),
        examined=len(examined),
        endpoints=len(used),
        further=tuple(islice((each for each in others if each not in examined), MAX_FURTHER)),
        node_addresses=node.addresses if node else (),
        pod_networks=node.pod_networks if node else (),
        cluster_networks=_cluster_networks(agent),
        required={each.name.removeprefix("net."): each.value for each in sysctls},
        owns_iptables=mode.owns_iptables,
        owns_ipvs=mode.owns_ipvs,
        by_source=mode.translates_before_routing,
    )


def _cluster_networks(agent: AgentFacts) -> tuple[Network, ...]:
    """Return the networks of all pods: as configured, or around those of this node."""
    if configured := agent.settings.local_traffic.cluster_networks:
        return configured
    node = agent.node
    return tuple(
        # Cluster networks are usually /16 and /48 or /56, and those of nodes /24 and /64.
        Network(Address(network.address[:2] + bytes(len(network.address) - 2)), 16)
        for network in (node.pod_networks if node else ())
        if network.prefix > 16
    )


def _port_paths(
    agent: AgentFacts, facts: PortFacts, port: PortRouting, given: _Client | None, chosen: _Chosen
) -> Iterator[PacketPath]:
    seen: set[tuple[Origin, bool, Backend]] = set()
    pods = _local_pods(agent, facts)
    # All modes set the bit before routing, and clear it in postrouting.
    mark = agent.settings.masquerade.mark
    for frontend in _frontends(port, agent.node_routing):
        senders = [given] if given else _senders(agent, port.family, frontend, pods)
        for client in senders:
            origin = client.origin
            masqueraded = _masquerades(agent, frontend, client, port.family)
            for number, each in enumerate(chosen.used(frontend.use, origin)):
                # A further frontend changes nothing behind the translation, so one path will do.
                key = (origin, masqueraded, each)
                if number and key in seen:
                    continue
                seen.add(key)
                found = facts.endpoints.get(each)
                node = found.node if found else ""
                sample = client.sample(each)
                frontend_target = backend(frontend.address, frontend.port)
                yield PacketPath(
                    origin,
                    arriving=_packet(facts, client, frontend_target, sample, Mark(0)),
                    leaving=_packet(facts, client, each, sample, mark if masqueraded else Mark(0)),
                    node=node,
                    local=node == agent.settings.node_name,
                    masqueraded=masqueraded,
                )


def _packet(
    port: PortFacts, client: _Client, target: Backend, sample: Address | None, mark: Mark
) -> FirstPacket:
    return FirstPacket(
        port.port.protocol,
        client.address,
        Address(target[:-2]),
        Port(int.from_bytes(target[-2:], "big")),
        mark,
        sample,
        in_device=None if client.origin is Origin.NODE else "",
    )


def _local_pods(agent: AgentFacts, facts: PortFacts) -> list[Address]:
    """Return the addresses of two pods of this node, so that one is not the endpoint."""
    own = agent.node.addresses if agent.node else ()
    pods = (
        each.address
        for each in facts.endpoints.values()
        if each.node == agent.settings.node_name and each.address not in own
    )
    return list(islice(pods, 2))


def _frontends(port: PortRouting, node: NodeRouting) -> list[Frontend]:
    """Choose frontends with an address each, one of each scope first."""
    own = [a for a in node.node_port_addresses if family_of(a) is port.family]
    first: dict[tuple[Scope, Use], Frontend] = {}
    others: list[Frontend] = []
    for frontend in port.frontends:
        each = frontend
        if not frontend.address:
            if not own:
                continue
            each = msgspec.structs.replace(frontend, address=own[0])
        if (each.scope, each.use) not in first:
            first[each.scope, each.use] = each
        elif len(others) < MAX_FRONTENDS:
            others.append(each)
    return [*first.values(), *others][:MAX_FRONTENDS]


def _given(agent: AgentFacts, client: Address | None, own: Collection[Address]) -> _Client | None:
    """Return the sender with the address that the user gave."""
    if client is None:
        return None
    node = agent.node
    if any(client in network for network in _LOOPBACK):
        # A program on this node, whose packets to other addresses have another source.
        return _Client(Origin.NODE, None, ())
    if client in own or (node and client in node.addresses):
        return _Client(Origin.NODE, client, ())
    pods = node.pod_networks if node else ()
    local = any(client in network for network in pods)
    return _Client(Origin.POD if local else Origin.EXTERNAL, client, ())


def _senders(
    agent: AgentFacts, family: Family, frontend: Frontend, pods: Sequence[Address]
) -> list[_Client]:
    node = agent.node
    known = (*agent.node_routing.pod_networks, *(node.pod_networks if node else ()))
    pods_exist = any(network.family is family for network in known) or bool(
        agent.settings.local_traffic.interfaces("*")
    )
    found = [Origin.POD] if pods_exist else []
    found.append(Origin.NODE)
    # Other hosts have no route to cluster IPs, unless someone adds one.
    if frontend.scope is not Scope.CLUSTER_IP:
        found.append(Origin.EXTERNAL)
    return [_Client(origin, None, pods) for origin in found]


def _masquerades(agent: AgentFacts, frontend: Frontend, client: _Client, family: Family) -> bool:
    """Return whether the mode's rules mark the packet for masquerading."""
    if frontend.scope is not Scope.CLUSTER_IP:
        return frontend.use is Use.CLUSTER or (
            frontend.use is Use.SPLIT and client.origin is Origin.NODE
        )
    if agent.settings.masquerade.everything:
        return True
    networks = [n for n in agent.node_routing.pod_networks if n.family is family]
    known = bool(networks) or bool(agent.settings.local_traffic.interfaces("*"))
    if not known or client.origin is Origin.POD:
        return False
    return client.address is None or not any(client.address in each for each in networks)


class Spread(msgspec.Struct, frozen=True):
    """Endpoints: those on this node, and the others by node and network."""

    local: tuple[Backend, ...] = ()
    groups: tuple[tuple[Backend, ...], ...] = ()

    def choose(self, limit: int, skip: int = 0) -> list[Backend]:
        """Return at most `limit` endpoints: this node's first, then one of each group in turn.

        `skip` groups come last, so that several ports examine different ones.
        """
        # Half is left for other nodes, whose routes may each be wrong.
        chosen = self.local[: limit if not self.groups else max(1, limit // 2)]
        first = skip % len(self.groups) if self.groups else 0
        groups = self.groups[first:] + self.groups[:first]
        others = (each for row in zip_longest(*groups) for each in row if each is not None)
        return [*chosen, *islice(others, limit - len(chosen))]


def spread(facts: PortFacts, backends: Iterable[Backend], agent: AgentFacts) -> Spread:
    """Return the endpoints of a port by node and network."""
    groups: dict[tuple[str, bytes], list[Backend]] = {}
    local: list[Backend] = []
    for each in backends:
        found = facts.endpoints.get(each)
        node = found.node if found else ""
        if node == agent.settings.node_name:
            local.append(each)
        else:
            # The routes of pod networks are usually /24 and /64.
            network = each[:3] if len(each) == 6 else each[:8]
            groups.setdefault((node, network), []).append(each)
    return Spread(tuple(local), tuple(map(tuple, groups.values())))
