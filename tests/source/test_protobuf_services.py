"""Services of a known shape are read without the parser, with the result of the parser."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproxy_lab.apiserver import protobuf

from pyproxy.errors import Problem
from pyproxy.model.objects import Kind, Service
from pyproxy.source import protobuf_services, services, wire
from pyproxy.source.decode import NotProxied, decode_object
from pyproxy.source.protobuf_objects import service_spec, service_status
from pyproxy.source.wire import ProtobufObject
from tests.examples import examples


def field(number: int, value: bytes) -> bytes:
    key = bytes([number << 3 | 2]) if number < 16 else bytes([(number << 3 | 2) & 127 | 128, 1])
    return key + bytes([len(value)]) + value


def port(number: int, node_port: int = 0) -> bytes:
    numbers = b"\x18" + bytes([number]) + (b"\x28" + bytes([node_port]) if node_port else b"")
    return field(1, field(1, b"http") + field(2, b"TCP") + numbers)


IP, IPS = field(3, b"10.96.0.1"), field(18, b"10.96.0.1")
TYPE, REST = field(4, b"ClusterIP") + field(7, b"None"), field(19, b"IPv4") + field(22, b"Cluster")
PARTS: dict[str, list[bytes]] = {
    "ports": [
        port(80),
        port(80) + port(81),
        port(80) * 2,
        port(80, 99),
        b"\x0a\x8c\x00" + port(80)[2:],  # a size with a byte too many
        field(1, b"\xff"),
        b"",
    ],
    "selector": [
        field(2, field(1, b"app") + field(2, b"web")),
        field(2, b"any bytes") * 3,
        field(2, IP),
        b"\x12\x7f",
        b"\x12\xff\x01" + bytes(255),
        b"",
    ],
    "cluster_ip": [
        IP,
        *(
            field(3, text)
            for text in (b"10.96.0.2", b"fd00::1", b"127.0.0.1", b"None", b"", b"\xff")
        ),
        IP + field(3, b"None"),
        b"\x1a\x89\x00" + IP[2:],
        b"",
    ],
    "type": [
        TYPE,
        field(4, b"NodePort"),
        field(4, b"LoadBalancer") + field(9, b"10.0.0.0/8") + b"\x60\x09",
        TYPE + field(5, b"192.0.2.1"),
        TYPE + field(5, b"\xc2" + IPS),
        TYPE + field(5, IPS),
        TYPE + field(7, b"ClientIP") + field(14, field(1, b"\x08\x09")),
        TYPE + b"\x2a\x20",
        field(4, b"ExternalName"),
        b"",
    ],
    "cluster_ips": [
        IPS,
        *(field(18, text) for text in (b"10.96.0.2", b"fd00::1", b"127.0.0.1", b"None", b"")),
        IPS + field(18, b"fd00::1"),
        IPS + field(18, b"10.96.0.1"),
        field(18, b"fd00::1") + IPS,
        b"",
    ],
    "rest": [
        REST,
        field(22, b"Local"),
        field(22, b"Nowhere"),
        field(17, b"SingleStack") + REST,
        REST + field(3, b"None"),
        REST + field(22, b"\xff"),
        b"\x7a",
        b"",
    ],
}
USUAL = {name: options[0] for name, options in PARTS.items()}
STATUSES = [
    field(1, b""),
    b"",
    field(1, field(1, field(1, b"192.0.2.9") + field(3, b"VIP"))),
    b"\xff",
]
METAS = [
    wire.Meta("web", "shop", "u-1", "7", "2026-11-30T00:00:00Z"),
    wire.Meta("db", "shop"),
    wire.Meta("web", "shop", labels=wire.Labels(zone="z")),
    wire.Meta("web", "shop", labels=wire.Labels(proxy_name="other")),
    wire.Meta("web", "shop", labels=wire.Labels(headless="")),
    wire.Meta("web", "shop", annotations=wire.Annotations(ipvs_scheduler="sh")),
    wire.Meta("web", "shop", annotations=wire.Annotations(ipvs_scheduler="none such")),
]


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf_services, "_known", {})


@st.composite
def specs(draw: st.DrawFn) -> bytes:
    """Make a spec, mostly in the usual form."""
    parts = [
        options[0] if draw(st.integers(0, 3)) else draw(st.sampled_from(options))
        for options in PARTS.values()
    ]
    if not draw(st.integers(0, 7)):
        parts = draw(st.permutations(parts))
    made = b"".join(parts)
    return made[: draw(st.integers(0, len(made)))] if not draw(st.integers(0, 7)) else made


def parsed(obj: wire.ProtobufService) -> object:
    """Convert a Service by the parser alone."""
    try:
        spec, status = service_spec(obj.spec), service_status(obj.status)
    except msgspec.DecodeError as error:
        return str(error)
    return services.service(wire.Service(obj.metadata, obj.kind, spec, status))


def converted(obj: wire.ProtobufService) -> object:
    try:
        return protobuf_services.service(obj)
    except msgspec.DecodeError as error:
        return str(error)


SERVICES = st.builds(
    wire.ProtobufService, st.sampled_from(METAS), st.none(), specs(), st.sampled_from(STATUSES)
)


@given(st.lists(SERVICES, max_size=5))
@settings(max_examples=examples(400))
def test_any_services_are_those_of_the_parser(found: list[wire.ProtobufService]) -> None:
    protobuf_services._known.clear()
    for _ in range(2):  # the first pass learns
        for obj in found:
            assert converted(obj) == parsed(obj)


@pytest.mark.parametrize("status", STATUSES)
def test_every_part_is_that_of_the_parser(status: bytes) -> None:
    for name, options in PARTS.items():
        for option in options:
            spec = b"".join((USUAL | {name: option}).values())
            other = spec.replace(b"10.96.0.1", b"10.96.0.7")
            for each in (spec, other, spec, other):
                for meta in METAS:
                    obj = wire.ProtobufService(meta, None, each, status)
                    assert converted(obj) == parsed(obj)


def test_a_cluster_ip_within_another_field_is_no_shape() -> None:
    # The text of clusterIPs, found within that of the external name (field 10).
    inner = field(10, IPS)
    spec = b"".join((USUAL | {"cluster_ips": inner}).values())
    obj = wire.ProtobufService(METAS[0], None, spec, b"")
    assert converted(obj) == parsed(obj)
    assert not protobuf_services._known


def test_the_parser_sees_one_service_of_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def counted(data: bytes) -> wire.ServiceSpec:
        seen.append(data)
        return service_spec(data)

    monkeypatch.setattr(protobuf_services, "service_spec", counted)
    for number in range(1000):
        address = f"10.96.{number // 250}.{1 + number % 250}"
        spec: dict[str, Any] = {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "selector": {"app": f"web-{number}"},
            "ports": [{"name": "http", "protocol": "TCP", "port": 80 + number % 5}],
        }
        meta = {"name": f"web-{number}", "namespace": "shop", "labels": {"app": "web"}}
        raw = protobuf.encode("Service", {"metadata": meta, "spec": spec})
        found = decode_object(Kind.SERVICE, ProtobufObject(raw)).value
        assert isinstance(found, Service)
        assert found.name.name == f"web-{number}"
    assert len(seen) == 5


NOT_SHARED = {
    "a node port": {"ports": port(80, 99), "type": field(4, b"NodePort")},
    "an external IP": {"type": TYPE + field(5, b"192.0.2.1")},
    "source ranges": {"type": field(4, b"LoadBalancer") + field(9, b"10.0.0.0/8")},
}


@pytest.mark.parametrize("part", NOT_SHARED.values(), ids=NOT_SHARED)
def test_what_no_other_service_has_is_not_remembered(part: dict[str, bytes]) -> None:
    spec = b"".join((USUAL | part).values())
    obj = wire.ProtobufService(METAS[0], None, spec, b"")
    assert not isinstance(converted(obj), NotProxied | Problem | str)
    assert not protobuf_services._known


def test_the_number_of_shapes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf_services, "_MOST_SHAPES", 3)
    for number in range(80, 90):
        spec = b"".join((USUAL | {"ports": port(number)}).values())
        converted(wire.ProtobufService(METAS[0], None, spec, b""))
    assert 0 < len(protobuf_services._known) <= 3
