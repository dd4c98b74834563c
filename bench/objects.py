"""The cluster that is measured: Services of one port, each with one slice of ready endpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from pyproxy.lab.client import ENDPOINT_SLICES, collection
from pyproxy.model.address import Address, address_text

NODE_NAME = "node-0"
NODE_ADDRESS = "172.30.0.11"
POD_NETWORK = "10.128.0.0/9"
SERVICE_NETWORK = "10.96.0.0/12"
PORT, POD_PORT = 80, 8080

_NAMESPACE = "bench"
_FIRST_POD = 10 << 24 | 128 << 16
_FIRST_SERVICE = (10 << 24 | 96 << 16) + 256
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
        yield endpoint_slice(number, size.endpoints)


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
        "metadata": {"name": f"service-{number}", "namespace": _NAMESPACE},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "selector": {"app": f"service-{number}"},
            "ports": [{"name": "http", "protocol": "TCP", "port": PORT, "targetPort": POD_PORT}],
        },
    }


def endpoint_slice(number: int, endpoints: int, version: int = 1) -> dict[str, Any]:
    """Write a Service's one slice; some of all endpoints are on the node that is measured."""
    first = number * endpoints
    owner = f"service-{number}"
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": slice_name(number),
            "namespace": _NAMESPACE,
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
        "endpoints": [endpoint(pod) for pod in range(first, first + endpoints)],
    }


def endpoint(pod: int) -> dict[str, Any]:
    """Write one endpoint, with the reference to its pod that a controller adds."""
    return {
        "addresses": [pod_ip(pod)],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "nodeName": f"node-{pod % _NODES}",
        "targetRef": {
            "kind": "Pod",
            "namespace": _NAMESPACE,
            "name": f"pod-{pod}",
            "uid": _UIDS % pod,
        },
        "zone": f"zone-{pod % 3}",
    }


def cluster_ip(number: int) -> str:
    """Give a Service's address."""
    return _text(_FIRST_SERVICE + number)


def pod_ip(pod: int) -> str:
    """Give a pod's address."""
    return _text(_FIRST_POD + pod)


def slice_name(number: int) -> str:
    """Name a Service's slice."""
    return f"service-{number}-slice"


def slice_path(number: int) -> str:
    """Give the path of a Service's slice in the API."""
    return f"{collection(_NAMESPACE, ENDPOINT_SLICES)}/{slice_name(number)}"


def _text(address: int) -> str:
    return address_text(Address(address.to_bytes(4, "big")))
