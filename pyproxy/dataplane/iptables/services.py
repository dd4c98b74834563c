"""From policy's answer to chains: values in, values out.

A Service port has the chains of kube-proxy: KUBE-SVC picks any endpoint, KUBE-SVL one on this node,
KUBE-EXT is for external frontends and KUBE-FW guards load balancer addresses. An endpoint has a
chain, KUBE-SEP, where there is more to do than to translate: its own address is masqueraded, or
its client remembered. All others are translated to where they are picked, for every rule of a
table is paid for whenever iptables-legacy writes to it.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from pyproxy.dataplane.iptables import names, tree
from pyproxy.dataplane.iptables.endpoints import pick
from pyproxy.dataplane.iptables.fixed import Options, Pods
from pyproxy.dataplane.iptables.rules import (
    DROP,
    End,
    Jump,
    Rule,
    Seen,
    SetMark,
    Translate,
    cleaned,
)
from pyproxy.model.address import Address, Backend, Family, Network
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use

_SERVES = (Use.CLUSTER, Use.LOCAL, Use.SPLIT)
_LOOPBACK = Network(Address(b"\x7f\0\0\0"), 8)


class View(msgspec.Struct, frozen=True):
    """What chains depend on besides the Service."""

    options: Options
    pods: Pods


class Part(msgspec.Struct, frozen=True):
    """What a Service has in one family.

    `served` and `refused` are frontends by their number in the tree, with the rule that takes
    a packet from there; `cluster_ips` are addresses whose other ports are refused.
    """

    nat: dict[str, tuple[Rule, ...]] = {}
    filter: dict[str, tuple[Rule, ...]] = {}
    served: dict[int, Rule] = {}
    refused: dict[int, Rule] = {}
    cluster_ips: set[Address] = set()


def compile_service(routing: ServiceRouting, family: Family, view: View) -> Part:
    """Write all that a Service has in a family."""
    part = Part()
    for port in routing.ports:
        if port.family is family:
            _Port(routing, port, view).add_to(part)
    return part


class _Port:
    """One port of a Service in one family."""

    def __init__(self, routing: ServiceRouting, port: PortRouting, view: View) -> None:
        self._route = routing
        self._port = port
        self._view = view
        self._mark = SetMark(view.options.mark)
        self._hairpin = frozenset(port.hairpin)
        self._digest = names.port_digest(routing.name, port.name, port.protocol)
        self._comment = cleaned(names.comment(routing.name, port.name))

    def add_to(self, part: Part) -> None:
        uses = {frontend.use for frontend in self._port.frontends}
        if Use.CLUSTER in uses or Use.SPLIT in uses:
            self._picking(names.service(self._digest), self._port.cluster, Use.CLUSTER, part)
        if Use.LOCAL in uses or (Use.SPLIT in uses and self._port.local):
            self._picking(names.local(self._digest), self._port.local, Use.LOCAL, part)
        for frontend in self._port.frontends:
            if frontend.scope is Scope.CLUSTER_IP:
                part.cluster_ips.add(frontend.address)
            elif frontend.use in _SERVES:
                part.nat[names.external(self._digest)] = tuple(self._external(frontend.use))
            self._lead(frontend, part)

    def _lead(self, frontend: Frontend, part: Part) -> None:
        port = self._port
        number = tree.number(frontend.address, port.protocol, frontend.port)
        guarded = frontend.scope is Scope.LOAD_BALANCER and bool(self._route.source_ranges)
        if frontend.use in _SERVES:
            chain = self._chain_for(frontend)
            if guarded:
                guard = names.firewall(self._digest)
                part.nat[guard] = tuple(self._guard(Jump(chain, returns=False)))
                chain = guard
            part.served[number] = self._at(frontend, Jump(chain, returns=False))
        if frontend.use is Use.REJECT:
            target = Jump(names.REFUSE, returns=False)
            if guarded:
                guard = names.firewall(self._digest)
                part.filter[guard] = (*self._guard(target), Rule(target=DROP))
                target = Jump(guard, returns=False)
            part.refused[number] = self._at(frontend, target)
        elif guarded or frontend.use is Use.DROP or self._leaves_some(frontend):
            # What nobody has translated is not to be served.
            part.refused[number] = self._at(frontend, DROP)

    def _leaves_some(self, frontend: Frontend) -> bool:
        return frontend.use is Use.SPLIT and not self._port.local

    def _chain_for(self, frontend: Frontend) -> str:
        if frontend.scope is not Scope.CLUSTER_IP:
            return names.external(self._digest)
        if frontend.use is Use.LOCAL:
            return names.local(self._digest)
        return names.service(self._digest)

    def _at(self, frontend: Frontend, target: Jump | End) -> Rule:
        counted = names.LOCALHOST_ACCEPTED in self._view.options.counters
        at_home = frontend.address in _LOOPBACK and frontend.use in _SERVES
        return Rule(
            destination=Network(frontend.address, self._port.family.bits),
            protocol=self._port.protocol,
            ports=(frontend.port, frontend.port),
            counter=names.LOCALHOST_ACCEPTED if counted and at_home else "",
            comment=self._comment,
            target=target,
        )

    def _guard(self, target: Jump) -> Iterator[Rule]:
        for network in self._route.source_ranges:
            if network.family is self._port.family:
                yield Rule(source=network, target=target)

    def _external(self, use: Use) -> Iterator[Rule]:
        service = Jump(names.service(self._digest), returns=False)
        if use is Use.LOCAL:
            yield Rule(target=Jump(names.local(self._digest), returns=False))
        elif use is Use.CLUSTER:
            yield Rule(target=self._mark)
            yield Rule(target=service)
        else:
            yield from self._view.pods.rules(service)
            yield Rule(from_here=True, target=self._mark)
            yield Rule(from_here=True, target=service)
            if self._port.local:
                yield Rule(target=Jump(names.local(self._digest), returns=False))

    def _picking(self, chain: str, backends: tuple[Backend, ...], use: Use, part: Part) -> None:
        timeout = self._route.affinity_timeout
        returning: tuple[Rule, ...] = ()
        if timeout:
            returning = tuple(self._return_to(backend, timeout) for backend in backends)
        for backend in backends:
            if timeout or backend in self._hairpin:
                part.nat[self._endpoint(backend)] = tuple(self._serve(backend))
        picking, groups = pick(chain, backends, self._send)
        part.nat.update(groups)
        part.nat[chain] = (*self._masquerade(use), *returning, *picking)

    def _masquerade(self, use: Use) -> Iterator[Rule]:
        """Mark what comes to a cluster IP from elsewhere than a pod."""
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
                if not network.prefix:  # everybody is a pod
                    continue
                yield Rule(source=network, not_source=True, destination=to, target=self._mark)
            elif view.pods.networks:
                yield Rule(destination=to, target=Jump(names.MARK_OUTSIDERS))

    def _return_to(self, backend: Backend, timeout: int) -> Rule:
        chain = self._endpoint(backend)
        seen = Seen(chain, self._port.family, timeout)
        return Rule(seen=seen, target=Jump(chain, returns=False))

    def _send(self, backend: Backend, share: int) -> Rule:
        if self._route.affinity_timeout or backend in self._hairpin:
            return Rule(share=share, target=Jump(self._endpoint(backend), returns=False))
        return Rule(protocol=self._port.protocol, share=share, target=Translate(backend))

    def _serve(self, backend: Backend) -> Iterator[Rule]:
        family = self._port.family
        if backend in self._hairpin:
            itself = Network(Address(backend[:-2]), family.bits)
            yield Rule(source=itself, target=self._mark)
        seen = None
        if self._route.affinity_timeout:
            seen = Seen(self._endpoint(backend), family)
        yield Rule(protocol=self._port.protocol, seen=seen, target=Translate(backend))

    def _endpoint(self, backend: Backend) -> str:
        return names.endpoint(self._route.name, self._port.name, self._port.protocol, backend)
