"""Three network namespaces: a client, the node that is measured, and all the pods there are.

    client ──── node ──── pods

The agent and the API server run on the node, and so does the process that measures. One
server responds on every pod address with the address that it was reached at. A
Service's address that no rule translates is unreachable at once, so that a prober need not wait.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from pyroute2 import netns

from pyproxy_lab import wiring
from pyproxy_lab.bench.shape import NODE_ADDRESS, POD_NETWORK, POD_PORT, SERVICE_NETWORK
from pyproxy_lab.leftovers import remove_abandoned
from pyproxy_lab.namespace import (
    LabError,
    Namespace,
    ip,
    make_namespaces,
    require_root,
)
from pyproxy_lab.owner import Owner
from pyproxy_lab.process import pipes

CLIENT_ADDRESS = "10.255.0.2"
"""A pod's, so that it is not masqueraded."""

_GATEWAY = "172.30.0.1"


class Place(msgspec.Struct, frozen=True):
    """Where agents run, where connections come from, and where all pods are."""

    node: Namespace
    client: Namespace
    pods: Namespace


@contextmanager
def own_place() -> Iterator[Place]:
    """Move this process to the node, and remove all namespaces at the end.

    Must be called in the main thread. Raises UsageError without root, LabError.
    """
    require_root()
    remove_abandoned()
    names = [f"{Owner.this_process().network(0)}-{which}" for which in ("node", "client", "pods")]
    node, client, pods = map(Namespace, names)
    try:
        make_namespaces(names, wiring.ON_ALL)
        _wire(node, client, pods)
        with _pods(pods):
            netns.pushns(node.name)
            try:
                yield Place(node, client, pods)
            finally:
                netns.popns()
    finally:
        for name in names:
            ip([f"netns del {name}"])


def _wire(node: Namespace, client: Namespace, pods: Namespace) -> None:
    ip(
        [
            f"link add pods netns {node.name} type veth peer name eth0 netns {pods.name}",
            f"link add client netns {node.name} type veth peer name eth0 netns {client.name}",
        ]
    )
    node.ip(
        [
            *(f"link set {name} up" for name in ("lo", "pods", "client")),
            f"addr add {NODE_ADDRESS}/24 dev pods",
            f"route add {POD_NETWORK} via {_GATEWAY}",
            f"route add {CLIENT_ADDRESS} dev client",
            f"route add unreachable {SERVICE_NETWORK}",
            "route add default via 172.30.0.1",
        ]
    )
    node.sysctl(wiring.ON_NODES)
    client.ip(
        [
            "link set lo up",
            "link set eth0 up",
            f"addr add {CLIENT_ADDRESS}/32 dev eth0",
            f"route add {NODE_ADDRESS} dev eth0",
            f"route add default via {NODE_ADDRESS}",
        ]
    )
    pods.ip(
        [
            "link set lo up",
            "link set eth0 up",
            f"addr add {_GATEWAY}/24 dev eth0",
            # Not in the table of local addresses, which has priority over the route to the client.
            f"route add local {POD_NETWORK} dev lo table main",
            f"route add {CLIENT_ADDRESS} via {NODE_ADDRESS}",
        ]
    )


@contextmanager
def _pods(pods: Namespace) -> Iterator[None]:
    command = [sys.executable, "-m", "pyproxy_lab.bench.pods", str(POD_PORT)]
    server = pods.start(command, stdin=subprocess.PIPE, output=subprocess.PIPE)
    with server:
        stdin, stdout = pipes(server)
        try:
            if stdout.readline() != b"ready\n":
                raise LabError("the pods' server has not started")
            yield
        finally:
            stdin.close()
