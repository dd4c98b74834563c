"""The cluster that is measured: Services of one port, each with slices of ready endpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from pyproxy.model.address import Address, address_text

NODE_NAME = "node-0"
NODE_ADDRESS = "172.30.0.11"
POD_NETWORK = "10.128.0.0/9"
SERVICE_NETWORK = "10.96.0.0/12"
PORT, POD_PORT = 80, 8080

NAMESPACE = "bench"
SLICE_LIMIT = 100
"""Endpoints of a slice, as the controller fills them."""

_FIRST_POD = 10 << 24 | 128 << 16
_FIRST_SERVICE = (10 << 24 | 96 << 16) + 256
FRESH_POD = (200 - 128) << 16
"""The first of the pods that changes bring: no other number is as high."""

_NODES = 100
_UIDS = "00000000-0000-4000-8000-%012d"


class Size(msgspec.Struct, frozen=True):
    """How many Services, and how many endpoints each has."""

    services: int
    endpoints: int

    def __str__(self) -> str:
        return f"{self.services:,} services x {self.endpoints}"


def objects(size: Size) -> Iterator[dict[str, Any]]:
    """Write every object of the cluster as the API has it."""
    yield node()
    for number in range(size.services):
        yield service(number)
        yield from endpoint_slices(number, size.endpoints)


def node() -> dict[str, Any]:
    """Write the Node that the agent serves."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE_NAME},
        "spec": {},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE_ADDRESS}]},
    }


def service(number: int) -> dict[str, Any]:
    """Write a Service as a list of a real API server shows it."""
    address = cluster_ip(number)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": service_name(number), "namespace": NAMESPACE},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "selector": {"app": service_name(number)},
            "ports": [{"name": "http", "protocol": "TCP", "port": PORT, "targetPort": POD_PORT}],
        },
    }


def endpoint_slices(number: int, endpoints: int) -> Iterator[dict[str, Any]]:
    """Write all slices of a Service; some of all endpoints are on the node that is measured."""
    pods = range(number * endpoints, (number + 1) * endpoints)
    for part, begin in enumerate(range(0, endpoints, SLICE_LIMIT)):
        yield endpoint_slice(number, pods[begin : begin + SLICE_LIMIT], part)


def endpoint_slice(
    number: int, pods: Sequence[int], part: int = 0, version: int = 1
) -> dict[str, Any]:
    """Write one of a Service's slices, with these pods in it."""
    owner = service_name(number)
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{owner}-{part}",
            "namespace": NAMESPACE,
            "resourceVersion": str(version),
            "generateName": f"{owner}-",
            "labels": {
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": owner,
            },
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "name": owner,
                    "uid": _UIDS % number,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": POD_PORT}],
        "endpoints": [_endpoint(pod) for pod in pods],
    }


def _endpoint(pod: int) -> dict[str, Any]:
    """Write one endpoint, with the reference to its pod that a controller adds."""
    return {
        "addresses": [pod_ip(pod)],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "nodeName": f"node-{pod % _NODES}",
        "targetRef": {
            "kind": "Pod",
            "namespace": NAMESPACE,
            "name": f"pod-{pod}",
            "uid": _UIDS % pod,
        },
        "zone": f"zone-{pod % 3}",
    }


def service_name(number: int) -> str:
    """Name a Service."""
    return f"service-{number}"


def cluster_ip(number: int) -> str:
    """Return a Service's address."""
    return _text(_FIRST_SERVICE + number)


def pod_ip(pod: int) -> str:
    """Return a pod's address."""
    return _text(_FIRST_POD + pod)


def _text(address: int) -> str:
    return address_text(Address(address.to_bytes(4, "big")))
