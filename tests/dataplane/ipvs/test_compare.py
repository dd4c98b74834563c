"""`compare` names each difference of one Service among others, over a kernel in dicts."""

from __future__ import annotations

import pytest

from pyproxy.dataplane.interface import NodeRouting, StateDiff, TableUsage
from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.model.address import Protocol, parse_address
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.ipvs import Scheduling
from pyproxy.policy.routing import Scope, ServiceRouting, Use
from tests.dataplane.ipvs.stage import Stage
from tests.dataplane.ipvs.test_dataplane import HTTP, ONE, THREE, TWO, many, of, service

KINDS = {
    "cluster IP": service(ONE, TWO),
    "rejected": service(use=Use.REJECT),
    "split": service(
        ONE, TWO, use=Use.SPLIT, scope=Scope.EXTERNAL_IP, local=(ONE,), name=ObjectName("a", "b")
    ),
    "affinity-frontends": service(ONE, affinity_timeout=60, scheduler="mh"),
}


def held(stage: Stage, wanted: ServiceRouting) -> StateDiff:
    return stage.restarted().compare(wanted, NodeRouting())


@pytest.mark.parametrize("wanted", KINDS.values(), ids=KINDS)
def test_a_programmed_service_has_no_difference(stage: Stage, wanted: ServiceRouting) -> None:
    stage.begin(of(*many(20), wanted))
    sent = stage.sent()
    assert held(stage, wanted) == StateDiff()
    assert stage.sent() == sent


def test_a_draining_server_is_no_difference(stage: Stage) -> None:
    stage.begin(of(service(ONE, TWO)))
    stage.kernel.connections[HTTP, TWO] = 1
    stage.change(of(service(ONE)))
    assert stage.kernel.table[HTTP] == {ONE: 1, TWO: 0}
    assert held(stage, service(ONE)) == StateDiff()


def test_a_service_that_should_reject_and_serves(stage: Stage) -> None:
    stage.begin(of(service(ONE)))
    assert held(stage, service(use=Use.REJECT)) == StateDiff(
        missing=(
            "real server 10.244.2.1:8080 of tcp 10.96.0.1:80 weight 0",
            'no-endpoint-services4 { 10.96.0.1 . tcp . 80 comment "shop/web:http" }',
        ),
        extra=("real server 10.244.2.1:8080 of tcp 10.96.0.1:80 weight 1",),
    )


@pytest.mark.parametrize(
    ("harm", "missing", "extra"),
    [
        (
            "weight",
            "real server 10.244.2.1:8080 of tcp 10.96.0.1:80 weight 1",
            "real server 10.244.2.1:8080 of tcp 10.96.0.1:80 weight 5",
        ),
        (
            "method",
            "real server 10.244.2.1:8080 of tcp 10.96.0.1:80 weight 1",
            "real server 10.244.2.1:8080 of tcp 10.96.0.1:80 not masqueraded",
        ),
        ("server", "real server 10.244.2.1:8080 of tcp 10.96.0.1:80 weight 1", ""),
        ("frontend", 'frontends4 { 10.96.0.1 . tcp . 80 comment "shop/web:http" }', ""),
        (
            "foreign server",
            "real server 10.244.2.3:8080 of tcp 10.96.0.1:80 weight 0",
            "real server 10.244.2.3:8080 of tcp 10.96.0.1:80 weight 1",
        ),
        ("scheduler", "virtual service tcp 10.96.0.1:80 rr", "virtual service tcp 10.96.0.1:80 lc"),
        ("address", "address 10.96.0.1 on kube-ipvs0", ""),
        ("element", "cluster-ips4 { 10.96.0.1 }", ""),
    ],
)
def test_each_difference_is_named(stage: Stage, harm: str, missing: str, extra: str) -> None:
    wanted = service(ONE, TWO)
    stage.begin(of(*many(3), wanted))
    kernel = stage.kernel
    match harm:
        case "weight":
            kernel.table[HTTP][ONE] = 5
        case "method":
            kernel.routed.add((HTTP, ONE))
        case "server":
            del kernel.table[HTTP][ONE]
        case "foreign server":
            kernel.table[HTTP][THREE] = 1
        case "scheduler":
            kernel.how[HTTP] = Scheduling("lc")
        case "address":
            kernel.on_device.remove(HTTP.address)
        case "frontend":
            key = frontend_key(HTTP.address, Protocol.TCP, HTTP.port)
            del stage.rules.table["frontends4"][key]
        case "element":
            del stage.rules.table["cluster-ips4"][HTTP.address]
    assert held(stage, wanted) == StateDiff((missing,), (extra,) if extra else ())


def test_missing_rules_and_a_missing_device_are_named(stage: Stage) -> None:
    found = held(stage, service(ONE))
    assert found.rules == (
        "the base rules differ",
        "add device kube-ipvs0",
    )
    assert "virtual service tcp 10.96.0.1:80 rr" in found.missing


def test_table_usage_counts_each_table(stage: Stage) -> None:
    own = service(ONE, scope=Scope.NODE_PORT, address=parse_address("172.30.0.11"))
    stage.begin(of(*many(20), own))
    assert {
        TableUsage("virtual services", 21),
        TableUsage("addresses", 20),
        TableUsage("frontends4", 21),
    } <= set(stage.dataplane.table_usage())


def test_a_virtual_service_removed_by_hand_is_named_with_its_servers(stage: Stage) -> None:
    wanted = service(ONE, TWO)
    stage.begin(of(wanted))
    del stage.kernel.table[HTTP], stage.kernel.how[HTTP]
    assert held(stage, wanted).missing == (
        "virtual service tcp 10.96.0.1:80 rr",
        "real server 10.244.2.1:8080 of tcp 10.96.0.1:80 weight 1",
        "real server 10.244.2.2:8080 of tcp 10.96.0.1:80 weight 1",
    )
