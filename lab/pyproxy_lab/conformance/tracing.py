"""Compare the packet tracer of the node under test with the outcomes of probes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from functools import partial

from pyproxy.agent.node_addresses import local_addresses
from pyproxy.agent.trace_source import NODE, packet_from
from pyproxy.dataplane.conntrack.known_flow import find_known_flow, trace_known_flow
from pyproxy.dataplane.modes import of
from pyproxy.dataplane.packets import (
    Delivered,
    Dropped,
    Masquerade,
    PacketTracer,
    Rejected,
    TraceResult,
    Untouched,
)
from pyproxy.model.address import Backend, Family, Port, Protocol, backend, family_of, parse_address
from pyproxy.model.destination import parse_destination
from pyproxy.netlink.conntrack import Conntrack
from pyproxy_lab.conformance.cases import Probe
from pyproxy_lab.modes import LabMode
from pyproxy_lab.network import Network
from pyproxy_lab.probe import Outcome
from pyproxy_lab.topology import HOST_PORTS, Addresses, Topology


def check_of(mode: LabMode, network: Network, site: str) -> TraceCheck:
    """Return the check of one mode."""
    make = partial(of(mode.proxy_mode).tracer, mode.settings(site), local_addresses)
    return TraceCheck(network, site, network.namespace(site).call(make))


class TraceCheck:
    """Compares a trace on one site with each probe that holds.

    `traced` counts the probes. All packets of the cases pass that site.
    """

    def __init__(self, network: Network, site: str, tracer: PacketTracer) -> None:
        self._network = network
        self._site = site
        self._tracer = tracer
        self._names = servers_by_address(network.topology)
        self.traced = 0

    def __call__(self, wanted: Probe, seen: Outcome) -> str:
        """Return how the trace disagrees with an outcome; empty where it does not.

        Raises KernelError, and UsageError where the agent has programmed nothing.
        """
        self.traced += 1
        result = self._network.namespace(self._site).call(partial(self._trace, wanted))
        client = self._network.addresses(wanted.source_name)
        node = self._network.addresses(self._site)
        if agrees(result, seen, client, node, self._names):
            return ""
        return f"{seen}, which contradicts this trace:\n{result}"

    def _trace(self, wanted: Probe) -> TraceResult:
        target = parse_destination(wanted.to)
        sender = NODE
        if wanted.source_name != self._site:
            sender = self._address(wanted.source_name, family_of(target.address))
        packet = packet_from(sender, target)
        if wanted.sport and packet.protocol is not Protocol.TCP:
            conntrack = Conntrack()
            try:
                flow = find_known_flow(conntrack, packet, Port(wanted.sport))
            finally:
                conntrack.close()
            if flow is not None:
                return trace_known_flow(packet, flow)
        return self._tracer.trace(packet)

    def _address(self, name: str, family: Family) -> str:
        topology = self._network.topology
        for site in topology.sites:
            if site.name == name:
                return site.addresses.of(family)
        for pod in topology.pods:
            if pod.name == name:
                return pod.addresses.of(family)
        return topology.outside.of(family)


def agrees(
    result: TraceResult,
    seen: Outcome,
    client: Set[str],
    node: Set[str],
    names: Mapping[Backend, str],
) -> bool:
    """Return whether an outcome agrees with a trace result.

    `client` and `node` are the addresses of the sender and of the node; the node
    masquerades other senders alone. `names` are those of all servers by address and port.
    """
    verdicts = tuple(result.verdicts())
    delivered = [verdict for verdict in verdicts if isinstance(verdict, Delivered)]
    backends = {names.get(verdict.backend) for verdict in delivered}
    if not delivered or backends == {None}:
        return _agrees_that_none(result, seen, names)
    if len(delivered) != len(verdicts) or seen.reached.keys() != backends:
        return False
    if seen.refused or seen.dropped:
        return False
    if client & node:
        return seen.sources <= node
    kept = {verdict.masquerade is Masquerade.NONE for verdict in delivered}
    return seen.sources <= client | node and kept == {each in client for each in seen.sources}


def _agrees_that_none(result: TraceResult, seen: Outcome, names: Mapping[Backend, str]) -> bool:
    wanted = {type(verdict) for verdict in result.verdicts()}
    packet = result.packet
    if wanted == {Untouched}:
        # The packet is not translated, so only the host with that address may respond.
        return seen.reached.keys() <= {names.get(backend(packet.destination, packet.port))}
    if wanted == {Dropped}:
        return bool(seen.dropped) and not (seen.reached or seen.refused)
    if packet.protocol is Protocol.SCTP and Rejected in wanted:
        # An SCTP client ignores the ICMP error and retries.
        return len(wanted) == 1 and bool(seen.refused or seen.dropped) and not seen.reached
    # A packet to a closed port is refused by the endpoint's own host.
    return len(wanted) == 1 and bool(seen.refused) and not (seen.reached or seen.dropped)


def servers_by_address(topology: Topology) -> dict[Backend, str]:
    """Return the names of all servers of a lab by address and port."""
    return dict(_servers(topology))


def _servers(topology: Topology) -> Iterator[tuple[Backend, str]]:
    for pod in topology.pods:
        yield from _at(pod.addresses, pod.ports, pod.name)
    for site in topology.sites:
        yield from _at(site.addresses, HOST_PORTS, site.host)


def _at(addresses: Addresses, ports: Iterable[int], name: str) -> Iterator[tuple[Backend, str]]:
    for address in addresses:
        yield from ((backend(parse_address(address), Port(port)), name) for port in ports)
