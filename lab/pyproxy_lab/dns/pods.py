"""The pods of the DNS server, behind the Service kube-dns: names go through the proxy too."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import dns.exception
import dns.message
import dns.rcode

from pyproxy.model.address import Family
from pyproxy_lab import reflector
from pyproxy_lab.client import PODS, SERVICES, JsonObject, collection
from pyproxy_lab.cluster import Cluster
from pyproxy_lab.dns import records, server
from pyproxy_lab.dns.resolv_conf import ADDRESS, ZONE, resolv_conf
from pyproxy_lab.node_exec import MIRROR
from pyproxy_lab.reflector import Name
from pyproxy_lab.topology import OUTSIDE, Pod, Topology, numbered_pod

_NAMESPACE = "kube-system"
_LABELS = {"k8s-app": "kube-dns"}
_HOST = 2
_PORT = 53
_KNOWN = f"kubernetes.default.svc.{ZONE}."
_TIMEOUT = 0.25
_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


def responds() -> bool:
    """Return whether the Service kube-dns resolves a name for the calling thread's namespace."""
    query = dns.message.make_query(_KNOWN, "A")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(_TIMEOUT)
        try:
            asking.connect((ADDRESS, _PORT))
            asking.send(query.to_wire())
            response = dns.message.from_wire(asking.recv(4096))
        except (OSError, dns.exception.DNSException):
            return False
    return query.is_response(response) and bool(response.answer)


@contextmanager
def serving(cluster: Cluster) -> Iterator[None]:
    """Run the server until the block ends, with its pods and their Service in the API.

    Nodes and the DNS pods themselves resolve names with it. Raises LabError.
    """
    topology = cluster.network.topology
    pods = _pods(topology)
    sockets: list[socket.socket] = []
    for pod in pods:
        cluster.network.wire_pod(pod)
        families = [_FAMILIES[family] for family in topology.families]
        open_them = partial(server.open_sockets, families)
        sockets += cluster.network.namespace(pod.name).call(open_them)
    for site in topology.sites:
        cluster.network.write_resolv_conf(site.name, resolv_conf("default"))
    # The outside client has no DNS server, and must not ask the machine's.
    cluster.network.write_resolv_conf(OUTSIDE, "")
    cluster.client.create(collection(_NAMESPACE, SERVICES), _service())
    for number, pod in enumerate(pods, 1):
        _write(cluster, f"dns-{number}", pod)
    following = _follow(cluster.url, cluster.client.token, sockets)
    try:
        with reflector.in_thread(following, "dns", cluster.network.api.name):
            yield
    finally:
        for each in sockets:
            each.close()


async def _follow(url: str, token: str, sockets: list[socket.socket]) -> None:
    services: dict[Name, JsonObject] = {}
    slices: dict[Name, JsonObject] = {}
    namespaces: dict[Name, JsonObject] = {}
    view = records.View(services, slices, namespaces)
    async with reflector.session(url, token) as session, asyncio.TaskGroup() as group:
        await reflector.follow(
            session,
            group,
            [
                ("/api/v1/services", services, reflector.unnoticed),
                ("/apis/discovery.k8s.io/v1/endpointslices", slices, reflector.unnoticed),
                ("/api/v1/namespaces", namespaces, reflector.unnoticed),
            ],
        )
        await server.serve(sockets, lambda: view)


def _pods(topology: Topology) -> list[Pod]:
    """Place two pods, on two nodes if there are as many."""
    last = min(2, len(topology.sites))
    return [numbered_pod("dns1", 1, _HOST, ()), numbered_pod("dns2", last, _HOST + 1, ())]


def _service() -> JsonObject:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "labels": _LABELS},
        "spec": {
            "clusterIP": ADDRESS,
            "selector": _LABELS,
            "ports": [
                {"name": "dns", "port": _PORT, "protocol": "UDP"},
                {"name": "dns-tcp", "port": _PORT, "protocol": "TCP"},
            ],
        },
    }


def _write(cluster: Cluster, name: str, pod: Pod) -> None:
    """Write a pod, running and ready."""
    topology = cluster.network.topology
    site = topology.site(pod.site)
    path = collection(_NAMESPACE, PODS)
    cluster.client.create(
        path,
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": _LABELS, "annotations": {MIRROR: name}},
            "spec": {
                "nodeName": site.node,
                "containers": [{"name": "dns", "image": "pyproxy-lab-dns:1"}],
            },
        },
    )
    addresses = topology.used(pod.addresses)
    status = {
        "phase": "Running",
        "podIP": addresses[0],
        "podIPs": [{"ip": address} for address in addresses],
        "hostIP": site.addresses.ipv4,
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    cluster.client.patch(f"{path}/{name}/status", {"status": status})
