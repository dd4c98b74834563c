"""Compile a Service's routing into chains: values in, values out.

A Service port has the chains of kube-proxy. KUBE-SVC picks any endpoint, KUBE-SVL one on this node,
KUBE-EXT is for external frontends, and KUBE-FW tests load balancer source ranges. An endpoint has a
chain, KUBE-SEP, only if more than a translation is needed: if it may be its own client, or for
session affinity. Any other endpoint is translated to by the rule that picks it, because
iptables-legacy copies every rule of a table at each write.

The kernel tries a chain's rules in order, so that a chain of a thousand endpoints would cost up to
a thousand rules per connection. Many endpoints are divided into groups by a digest of their
address, and each group is picked in proportion to its size. A new endpoint changes its own group,
and the probabilities of the groups.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence

import msgspec

from pyproxy.dataplane.iptables import chain_names, tree
from pyproxy.dataplane.iptables.base_rules import IptablesOptions, Pods
from pyproxy.dataplane.iptables.rules import (
    DROP,
    End,
    Jump,
    Rule,
    Seen,
    SetMark,
    Translate,
    chance,
    cleaned,
)
from pyproxy.model.address import Address, Backend, Family, Network
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use
from pyproxy.xtables import kube_names

MANY = 32
"""Endpoints that one chain picks from; more are divided into groups."""

_GROUP = 16
"""The average size of a group, as long as there are fewer than _MOST_GROUPS."""

_MOST_GROUPS = 256
"""Two hexadecimal digits of a group's number fit behind a chain's name of 25 of 28 characters."""

_SERVES = (Use.CLUSTER, Use.LOCAL, Use.SPLIT)
_LOOPBACK = Network(Address(b"\x7f\0\0\0"), 8)


class View(msgspec.Struct, frozen=True):
    """The configuration and the node's pods, on which chains depend besides the Service."""

    options: IptablesOptions
    pods: Pods


class Part(msgspec.Struct, frozen=True):
    """The chains and frontends of a Service in one family.

    `nat` and `filter` are chains of these tables. `served` and `refused` are frontends by their
    number in the tree, with the rule at which a packet leaves the tree. `node_served` and
    `node_refused` are node ports, which have any address of the node. `cluster_ips` are addresses
    whose other ports are rejected.
    """

    # msgspec copies these empty defaults for each Part.
    nat: dict[str, tuple[Rule, ...]] = {}
    filter: dict[str, tuple[Rule, ...]] = {}
    served: dict[int, Rule] = {}
    refused: dict[int, Rule] = {}
    node_served: dict[int, Rule] = {}
    node_refused: dict[int, Rule] = {}
    cluster_ips: set[Address] = set()


def compile_service(routing: ServiceRouting, family: Family, view: View) -> Part:
    """Return the chains and frontends of a Service in a family."""
    part = Part()
    for port in routing.ports:
        if port.family is family:
            _PortCompiler(routing, port, view).add_to(part)
    return part


class _PortCompiler:
    """One port of a Service in one family."""

    def __init__(self, routing: ServiceRouting, port: PortRouting, view: View) -> None:
        self._routing = routing
        self._port = port
        self._view = view
        self._mark = SetMark(view.options.mark)
        self._hairpin = frozenset(port.hairpin)
        self._digest = chain_names.port_digest(routing.name, port.name, port.protocol)
        self._comment = cleaned(chain_names.comment(routing.name, port.name))

    def add_to(self, part: Part) -> None:
        uses = {frontend.use for frontend in self._port.frontends}
        if Use.CLUSTER in uses or Use.SPLIT in uses:
            self._add_picks(
                chain_names.service(self._digest), self._port.cluster, Use.CLUSTER, part
            )
        if Use.LOCAL in uses or (Use.SPLIT in uses and self._port.local):
            self._add_picks(chain_names.local(self._digest), self._port.local, Use.LOCAL, part)
        for frontend in self._port.frontends:
            if frontend.scope is Scope.CLUSTER_IP:
                part.cluster_ips.add(frontend.address)
            elif frontend.use in _SERVES:
                chain = chain_names.external(self._digest)
                part.nat[chain] = (*self._count_loopback(), *self._external(frontend.use))
            self._add_frontend(frontend, part)

    def _add_frontend(self, frontend: Frontend, part: Part) -> None:
        port = self._port
        address = frontend.address or tree.ANYWHERE[port.family]
        number = tree.number(address, port.protocol, frontend.port)
        served = part.served if frontend.address else part.node_served
        refused = part.refused if frontend.address else part.node_refused
        has_ranges = frontend.scope is Scope.LOAD_BALANCER and bool(self._routing.source_ranges)
        if frontend.use in _SERVES:
            chain = self._chain_for(frontend)
            # A source in no range leaves this chain untranslated, and filter drops it.
            if has_ranges:
                ranges = chain_names.source_ranges(self._digest)
                part.nat[ranges] = tuple(self._test_ranges(Jump(chain, returns=False)))
                chain = ranges
            served[number] = self._frontend_rule(frontend, Jump(chain, returns=False))
        if frontend.use is Use.REJECT:
            target = Jump(kube_names.REFUSE, returns=False)
            if has_ranges:
                ranges = chain_names.source_ranges(self._digest)
                part.filter[ranges] = (*self._test_ranges(target), Rule(target=DROP))
                target = Jump(ranges, returns=False)
            refused[number] = self._frontend_rule(frontend, target)
        elif has_ranges or frontend.use is Use.DROP or self._drops_external(frontend):
            # filter comes after nat: a packet that nat did not translate may not be served.
            refused[number] = self._frontend_rule(frontend, DROP)

    def _drops_external(self, frontend: Frontend) -> bool:
        return frontend.use is Use.SPLIT and not self._port.local

    def _chain_for(self, frontend: Frontend) -> str:
        if frontend.scope is not Scope.CLUSTER_IP:
            return chain_names.external(self._digest)
        if frontend.use is Use.LOCAL:
            return chain_names.local(self._digest)
        return chain_names.service(self._digest)

    def _frontend_rule(self, frontend: Frontend, target: Jump | End) -> Rule:
        address = frontend.address
        return Rule(
            destination=Network(address, self._port.family.bits) if address else None,
            protocol=self._port.protocol,
            ports=(frontend.port, frontend.port),
            comment=self._comment,
            target=target,
        )

    def _count_loopback(self) -> Iterator[Rule]:
        """Yield a rule that counts connections to a node port on a loopback address."""
        counters = self._view.options.counters
        is_node_port = any(each.scope is Scope.NODE_PORT for each in self._port.frontends)
        if (
            is_node_port
            and self._port.family is Family.IPV4
            and kube_names.LOCALHOST_ACCEPTED in counters
        ):
            # Only the node itself reaches them, so the mark is set by later rules in any case, or
            # has no effect on a local endpoint.
            yield Rule(
                destination=_LOOPBACK,
                from_here=True,
                counter=kube_names.LOCALHOST_ACCEPTED,
                target=self._mark,
            )

    def _test_ranges(self, target: Jump) -> Iterator[Rule]:
        for network in self._routing.source_ranges:
            if network.family is self._port.family:
                yield Rule(source=network, target=target)

    def _external(self, use: Use) -> Iterator[Rule]:
        service = Jump(chain_names.service(self._digest), returns=False)
        if use is Use.LOCAL:
            yield Rule(target=Jump(chain_names.local(self._digest), returns=False))
        elif use is Use.CLUSTER:
            # The endpoint may be on another node: its reply must come back through this one.
            yield Rule(target=self._mark)
            yield Rule(target=service)
        else:
            # As in kube-proxy, pods and the node reach all endpoints, as they do by the cluster IP.
            yield from self._view.pods.rules(service)
            # The kernel chose the source of the node's own packets before translation, and an
            # endpoint may have no route to it.
            yield Rule(from_here=True, target=self._mark)
            yield Rule(from_here=True, target=service)
            if self._port.local:
                yield Rule(target=Jump(chain_names.local(self._digest), returns=False))

    def _add_picks(self, chain: str, backends: tuple[Backend, ...], use: Use, part: Part) -> None:
        timeout = self._routing.affinity_timeout
        affinity: tuple[Rule, ...] = ()
        if timeout:
            affinity = tuple(self._affinity_rule(backend, timeout) for backend in backends)
        for backend in backends:
            if timeout or backend in self._hairpin:
                part.nat[self._endpoint(backend)] = tuple(self._endpoint_rules(backend))
        picking, groups = pick(chain, backends, self._pick_rule)
        part.nat.update(groups)
        # In this order: a translation ends nat, and a mark must precede it. Clients that return
        # must not reach the random choice.
        part.nat[chain] = (*self._masquerade(use), *affinity, *picking)

    def _masquerade(self, use: Use) -> Iterator[Rule]:
        """Yield rules that mark packets to a cluster IP that do not come from a pod."""
        view = self._view
        for frontend in self._port.frontends:
            if frontend.scope is not Scope.CLUSTER_IP or frontend.use is not use:
                continue
            to = Network(frontend.address, self._port.family.bits)
            if view.options.masquerade_all:
                yield Rule(destination=to, target=self._mark)
            elif view.pods.interface:
                yield Rule(
                    destination=to,
                    interface=view.pods.interface,
                    not_interface=True,
                    target=self._mark,
                )
            elif len(view.pods.networks) == 1:
                (network,) = view.pods.networks
                if not network.prefix:  # every address is a pod's
                    continue
                yield Rule(source=network, not_source=True, destination=to, target=self._mark)
            elif view.pods.networks:
                yield Rule(destination=to, target=Jump(kube_names.MARK_EXTERNAL))

    def _affinity_rule(self, backend: Backend, timeout: int) -> Rule:
        chain = self._endpoint(backend)
        seen = Seen(chain, self._port.family, timeout)
        return Rule(seen=seen, target=Jump(chain, returns=False))

    def _pick_rule(self, backend: Backend, share: int) -> Rule:
        if self._routing.affinity_timeout or backend in self._hairpin:
            return Rule(share=share, target=Jump(self._endpoint(backend), returns=False))
        # DNAT takes a port only in a rule that matches the protocol.
        return Rule(protocol=self._port.protocol, share=share, target=Translate(backend))

    def _endpoint_rules(self, backend: Backend) -> Iterator[Rule]:
        family = self._port.family
        if backend in self._hairpin:
            # The pod's kernel drops a packet whose source is the pod's own address.
            own_address = Network(Address(backend[:-2]), family.bits)
            yield Rule(source=own_address, target=self._mark)
        seen = None
        if self._routing.affinity_timeout:
            seen = Seen(self._endpoint(backend), family)
        yield Rule(protocol=self._port.protocol, seen=seen, target=Translate(backend))

    def _endpoint(self, backend: Backend) -> str:
        return chain_names.endpoint(
            self._routing.name, self._port.name, self._port.protocol, backend
        )


def pick(
    chain: str, backends: Sequence[Backend], rule: Callable[[Backend, int], Rule]
) -> tuple[tuple[Rule, ...], dict[str, tuple[Rule, ...]]]:
    """Return the rules that pick one of `backends` in `chain`, and the chains that they go to.

    `rule` returns the rule that leads to an endpoint with a probability, in units of CERTAIN.
    """
    if len(backends) <= MANY:
        return tuple(_pick_evenly(backends, rule)), {}
    groups: dict[int, list[Backend]] = {}
    # A power of two, so that few endpoints move to another group when it changes.
    count = min(_MOST_GROUPS, 1 << (len(backends) // _GROUP).bit_length() - 1)
    for backend in backends:
        # hash() of bytes differs at each start, and a restart must find its chains unchanged.
        groups.setdefault(zlib.crc32(backend) % count, []).append(backend)
    rules, chains = [], {}
    left = len(backends)
    for number, members in sorted(groups.items()):
        name = chain_names.group(chain, number)
        rules.append(Rule(share=chance(len(members), left), target=Jump(name, returns=False)))
        chains[name] = tuple(_pick_evenly(members, rule))
        left -= len(members)
    return tuple(rules), chains


def _pick_evenly(
    backends: Sequence[Backend], rule: Callable[[Backend, int], Rule]
) -> Iterator[Rule]:
    # The last rule is reached only if all before it missed, so it matches always.
    for index, backend in enumerate(backends):
        yield rule(backend, chance(1, len(backends) - index))
