"""Rows of ipvs mode that Services share."""

from __future__ import annotations

import pytest

from pyproxy.dataplane.ipvs.rows import shared_rows
from pyproxy.model.address import Port, parse_address
from pyproxy.policy.parts import parts
from pyproxy.policy.routing import Scope
from tests.dataplane.ipvs.test_dataplane import ONE, service

CHECKED = parse_address("192.0.2.1")
ROW = ("health-checks4", CHECKED + b"\x06\0\0\0" + (32000).to_bytes(2, "big") + bytes(2))


@pytest.mark.parametrize(
    ("scope", "port", "expected"),
    [
        (Scope.LOAD_BALANCER, 32000, [ROW]),
        (Scope.LOAD_BALANCER, 0, []),
        (Scope.EXTERNAL_IP, 32000, []),
        (Scope.CLUSTER_IP, 32000, []),
        (Scope.NODE_PORT, 32000, []),
    ],
)
def test_a_health_check_port_is_let_through_at_load_balancer_addresses(
    scope: Scope, port: int, expected: list[tuple[str, bytes]]
) -> None:
    routing = service(ONE, scope=scope, address=CHECKED, health_check_port=Port(port))
    for each in (routing, *parts(routing).values()):
        rows = [row for row in shared_rows(each) if row[0].startswith("health-checks")]
        assert rows == expected
