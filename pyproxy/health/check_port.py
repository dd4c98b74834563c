"""The listening sockets of one health-check node port, and the ports that it cannot be."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping

import msgspec

from pyproxy.config.settings import ListenAddress
from pyproxy.errors import Problem, ProblemReason
from pyproxy.health.http import Listener
from pyproxy.health.sockets import bind, bind_unspecified
from pyproxy.model.address import Address, Family, Port
from pyproxy.model.objects import ObjectName

# https://kubernetes.io/docs/reference/networking/ports-and-protocols/; 10248: --healthz-port.
COMPONENT_PORTS = {
    2379: "etcd",
    2380: "etcd",
    6443: "the API server",
    10248: "the kubelet",
    10250: "the kubelet",
    10255: "the kubelet",
    10257: "the controller manager",
    10259: "the scheduler",
}
"""Ports of a node's own components, which must get them even if they start after this agent."""

_PRIVILEGED_PORTS = 1024


class ServiceHealthCheck(msgspec.Struct, frozen=True):
    """The health-check port of one Service and its number of ready local endpoints by family.

    Each response has the number of the family that it was asked in, to which the load balancer
    would send. A sum would count each dual-stack pod twice.
    """

    port: Port
    local_endpoints: Mapping[Family, int]


class Place(msgspec.Struct, frozen=True):
    """The addresses of one socket: a single one, or all of the node's in some families."""

    families: tuple[Family, ...]
    address: Address | None = None

    def bind(self, port: Port, queues: int) -> tuple[socket.socket, ...]:
        """Return listening sockets, one for each accept queue. Raises OSError."""
        if self.address is not None:
            return bind(ListenAddress(self.address, port), queues).public
        return bind_unspecified(self.families, port, queues).public

    def text(self, port: Port) -> str:
        """Name the place for people, with the port."""
        if self.address is not None:
            return str(ListenAddress(self.address, port))
        return f"port {port} of all addresses"


class OpenPort(msgspec.Struct):
    """The listeners of a Service; missing ones are retried.

    `separate` says that each address has a listener of its own, because another program has the
    port on one of them.
    """

    check: ServiceHealthCheck
    # msgspec copies an empty default for each instance.
    listeners: dict[Place, Listener] = {}
    problem: Problem | None = None
    separate: bool = False


def owner_of(port: Port, own_ports: frozenset[int]) -> str:
    """Name the owner of a port that no Service may have; empty if it may."""
    if port in own_ports:
        return "pyproxy"
    if port < _PRIVILEGED_PORTS:
        # sshd, for example: while it restarts, a retry would take its port.
        return "the node's services"
    return COMPONENT_PORTS.get(port, "")


def reserved_problem(name: ObjectName, port: Port, owner: str) -> Problem:
    """Return the Problem of a port that belongs to the node."""
    what = f"port {port} belongs to {owner}, and no Service can have it"
    return _problem(name, what, "until the Service has another port")


def listen_problem(name: ObjectName, where: str, error: OSError) -> Problem:
    """Return the Problem of a port that cannot be opened now."""
    number = error.errno or 0
    until = "until the port is free"
    if number in (errno.EMFILE, errno.ENFILE):
        until = "until others are closed, or the limit of open files is raised"
    return _problem(name, f"cannot listen on {where} ({os.strerror(number)})", until)


def _problem(name: ObjectName, what: str, until: str) -> Problem:
    return Problem(
        kind="Service",
        name=str(name),
        field="spec.healthCheckNodePort",
        message=f"{what}: load balancers that check it send nothing to this node {until}",
        reason=ProblemReason.FAILED_TO_START_HEALTHCHECK,
    )
