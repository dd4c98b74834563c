"""Services whose frontends no other Service can change."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pyproxy.agent.cluster_state import ClusterState, has_cluster_ips_only
from pyproxy.model.address import Port, Protocol
from pyproxy.model.events import Upsert
from pyproxy.model.objects import ServicePort
from tests.builders import ip, service


def independent(**fields: Any) -> bool:
    state = ClusterState()
    for number in range(3):
        state.handle_event(Upsert(service(f"s{number}", number)), 0.0)
    changed = msgspec.structs.replace(service("s1", 1), **fields)
    state.handle_event(Upsert(changed), 0.0)
    return has_cluster_ips_only(changed) and changed.name not in state.sharing_services()


@pytest.mark.parametrize(
    "fields",
    [
        {"external_ips": (ip("192.0.2.1"),)},
        {"load_balancer_ips": (ip("192.0.2.1"),)},
        {"health_check_port": Port(30000)},
        {"ports": (ServicePort("http", Protocol.TCP, Port(80), Port(30080)),)},
        {"cluster_ips": service("s0", 0).cluster_ips},
    ],
)
def test_services_that_others_may_conflict_with(fields: dict[str, Any]) -> None:
    assert not independent(**fields)


def test_a_service_with_a_cluster_ip_of_its_own() -> None:
    assert independent()
