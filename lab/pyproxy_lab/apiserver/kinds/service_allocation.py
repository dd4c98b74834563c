"""Cluster IPs, node ports and health check node ports of Services."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pyproxy_lab.apiserver.allocate import AddressRange, AllocationError, PortRange
from pyproxy_lab.apiserver.kinds.addresses import address_family
from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.status import FieldError, invalid_value

HEADLESS = "None"


def is_headless(spec: Object) -> bool:
    """Return whether a Service asks for no cluster IP."""
    return spec.get("clusterIP") == HEADLESS or spec.get("clusterIPs") == [HEADLESS]


def has_cluster_ip(spec: Object) -> bool:
    """Return whether a Service has cluster IPs."""
    return spec["type"] != "ExternalName" and not is_headless(spec)


def may_have_node_ports(spec: Object) -> bool:
    """Return whether a Service's type allows node ports."""
    return spec["type"] in {"NodePort", "LoadBalancer"}


def needs_node_ports(spec: Object) -> bool:
    """Return whether each port is to have a node port."""
    return spec["type"] == "NodePort" or (
        spec["type"] == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is not False
    )


def needs_health_check_port(spec: Object) -> bool:
    """Return whether a load balancer needs to ask which nodes have endpoints."""
    return spec["type"] == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


class Allocator:
    """The cluster's ranges for Services; the first range's family is the primary one."""

    def __init__(self, ranges: tuple[AddressRange, ...], ports: PortRange) -> None:
        self.families = tuple(r.family for r in ranges)
        self._ranges = {r.family: r for r in ranges}
        self._ports = ports

    def allocate(self, spec: Object, old: Object | None) -> list[FieldError]:
        """Take what a spec names and fill in what it leaves open; on errors nothing is taken.

        What the old spec has is not taken again, nor let go: `settle` does that.
        """
        undo: list[Callable[[], None]] = []
        done = False
        try:
            errors = [
                *self._addresses(spec, _addresses(old), undo),
                *self._node_ports(spec, _node_ports(old), undo),
            ]
            done = not errors
        finally:
            if not done:
                for step in undo:
                    step()
        return errors

    def settle(self, spec: Object | None, old: Object | None) -> None:
        """Let go what only the old spec had."""
        for address in _addresses(old) - _addresses(spec):
            self._ranges[address_family(address)].give_back(address)
        for port in _node_ports(old) - _node_ports(spec):
            self._ports.give_back(port)

    def _addresses(
        self, spec: Object, held: set[str], undo: list[Callable[[], None]]
    ) -> list[FieldError]:
        if not has_cluster_ip(spec):
            return []
        given = spec.get("clusterIPs") or []
        chosen = []
        for index, family in enumerate(spec["ipFamilies"]):
            numbers = self._ranges[family]
            if index < len(given):
                address = given[index]
                if address not in held:
                    try:
                        numbers.take(address)
                    except AllocationError as error:
                        return [invalid_value("spec.clusterIPs", given, str(error))]
                    undo.append(partial(numbers.give_back, address))
            else:
                address = numbers.take_any()
                undo.append(partial(numbers.give_back, address))
            chosen.append(address)
        spec["clusterIPs"] = chosen
        spec["clusterIP"] = chosen[0]
        return []

    def _node_ports(
        self, spec: Object, held: set[int], undo: list[Callable[[], None]]
    ) -> list[FieldError]:
        errors: list[FieldError] = []
        # One number may serve several protocols of the same Service.
        mine = set(held)

        def take(port: int, field: str) -> None:
            if port in mine:
                return
            try:
                self._ports.take(port)
            except AllocationError as error:
                errors.append(invalid_value(field, port, str(error)))
                return
            mine.add(port)
            undo.append(partial(self._ports.give_back, port))

        def take_any() -> int:
            port = self._ports.take_any()
            mine.add(port)
            undo.append(partial(self._ports.give_back, port))
            return port

        ports = spec.get("ports") or []
        for index, port in enumerate(ports):
            if may_have_node_ports(spec) and port.get("nodePort"):
                take(port["nodePort"], f"spec.ports[{index}].nodePort")
        if needs_health_check_port(spec) and spec.get("healthCheckNodePort"):
            take(spec["healthCheckNodePort"], "spec.healthCheckNodePort")
        if errors:
            return errors
        if needs_node_ports(spec):
            _fill_in_node_ports(ports, take_any)
        if needs_health_check_port(spec) and not spec.get("healthCheckNodePort"):
            spec["healthCheckNodePort"] = take_any()
        return []


def _fill_in_node_ports(ports: list[Object], take_any: Callable[[], int]) -> None:
    """Return each port a node port; the same port in another protocol shares the number."""
    shared = {p["port"]: (p["protocol"], p["nodePort"]) for p in ports if p.get("nodePort")}
    for port in ports:
        if port.get("nodePort"):
            continue
        protocol, number = shared.get(port["port"], ("", 0))
        if not number or protocol == port["protocol"]:
            number = take_any()
        port["nodePort"] = number
        shared[port["port"]] = (port["protocol"], number)


def _addresses(spec: Object | None) -> set[str]:
    return set(spec.get("clusterIPs") or ()) if spec and has_cluster_ip(spec) else set()


def _node_ports(spec: Object | None) -> set[int]:
    if not spec:
        return set()
    ports = {p["nodePort"] for p in spec.get("ports") or () if p.get("nodePort")}
    if spec.get("healthCheckNodePort"):
        ports.add(spec["healthCheckNodePort"])
    return ports
