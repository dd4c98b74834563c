"""The Events of a whole agent, with the rights of a Service proxy."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest
from pyproxy_lab.client import SERVICES, ApiClient, collection
from pyproxy_lab.cluster import Cluster
from pyproxy_lab.namespace import Namespace

from tests.exposition import scraped
from tests.waiting import until

from .proxied import balanced

pytestmark = pytest.mark.packets

SHOP = collection("shop", SERVICES)


def events(client: ApiClient, reason: str) -> list[dict[str, Any]]:
    found = client.get("/apis/events.k8s.io/v1/events")["items"]
    return [event for event in found if event["reason"] == reason]


def web(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], **spec}}


def test_two_agents_report_a_conflict_once_and_a_taken_port_each() -> None:
    with Cluster() as cluster:
        client = cluster.client
        client.create("/api/v1/namespaces", {"metadata": {"name": "shop"}})
        taken = cluster.network.namespace("na").call(listener)
        with taken, cluster.agent("na"), cluster.agent("nb"):
            until(lambda: len(events(client, "Starting")) == 2)
            for name in ("first", "second"):
                made = client.create(SHOP, web(name, externalIPs=["192.0.2.8"]))
            balancer = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}
            client.create(SHOP, web("third", healthCheckNodePort=32000, **balancer))
            client.patch(f"{SHOP}/third/status", {"status": balanced("198.51.100.1")})
            until(lambda: events(client, "FrontendConflict"))
            until(lambda: events(client, "FailedToStartServiceHealthcheck"))
            # The other agent finds that it comes second.
            nodes = [cluster.network.namespace(name) for name in ("na", "nb")]
            until(lambda: any(map(known, nodes)))
            # Each agent has posted Events, and has recorded the responses.
            until(lambda: all(response_sizes(node).get("POST") for node in nodes))
        (claimed,) = events(client, "FrontendConflict")
        (port,) = events(client, "FailedToStartServiceHealthcheck")
    assert claimed["regarding"]["name"] == "second"
    assert claimed["regarding"]["uid"] == made["metadata"]["uid"]
    assert claimed["metadata"]["namespace"] == "shop"
    assert "Service shop/first" in claimed["note"]
    assert port["reportingInstance"] == "node-a"
    assert "cannot listen on 172.30.0.11:32000" in port["note"]


def known(node: Namespace) -> bool:
    """Whether the agent of a node has been told that its Event is there already."""
    return node.call(scraped).get('pyproxy_events_total{outcome="known"}') == 1


def response_sizes(node: Namespace) -> dict[str, float]:
    """The number of responses whose size an agent has recorded, by method."""
    name = re.compile(r'rest_client_response_size_bytes_count\{host="[0-9.:]+",verb="(\w+)"\}')
    found = node.call(scraped)
    return {match[1]: found[each] for each in found if (match := name.fullmatch(each))}


def listener() -> socket.socket:
    return socket.create_server(("172.30.0.11", 32000))
