"""A Service with thousands of invalid fields: linear work, one log line and one Event."""

from __future__ import annotations

import json
import logging
from typing import Any

import msgspec
import pytest

from pyproxy.errors import NAMED_PROBLEMS, Problem, ProblemReason
from pyproxy.model.events import Upsert
from pyproxy.model.objects import Kind, Service
from pyproxy.source.decode import decode_object
from tests.agent.objects import Stage
from tests.builders import endpoint_slice, service
from tests.hostile.counting import instructions

FAMILY_IT_LACKS = "2001:db8::{:x}"


def spec_with(count: int, address: str = FAMILY_IT_LACKS) -> bytes:
    spec: dict[str, Any] = {
        "clusterIP": "10.96.9.9",
        "ports": [{"port": 80}],
        "externalIPs": [address.format(number + 1) for number in range(count)],
    }
    return json.dumps({"metadata": {"name": "odd", "namespace": "shop"}, "spec": spec}).encode()


def edit(stage: Stage, body: bytes) -> None:
    value = decode_object(Kind.SERVICE, body).value
    assert isinstance(value, Service)
    stage.agent.handle_event(Upsert(value, 0.0))
    stage.settle()


@pytest.fixture
def stage() -> Stage:
    made = Stage()
    made.begin(service("web", 1), endpoint_slice("web", ["10.244.1.5"]))
    return made


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def test_ten_thousand_invalid_fields_are_one_line_and_one_event(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    edit(stage, spec_with(10_000))
    (line,) = lines(caplog)
    assert "spec.externalIPs[0]: 2001:db8::1 has incorrect IP version" in line
    assert "spec.externalIPs: 9,995 more problems like these" in line
    assert len(line) < 1100
    (event,) = stage.reported
    assert str(event) in line
    assert len(stage.agent.problems()) == NAMED_PROBLEMS + 1
    assert stage.metrics_by_kind()["Service"] == 1


def test_an_edit_with_the_same_problems_is_silent(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        edit(stage, spec_with(1000))
        edit(stage, spec_with(0))
    assert len(lines(caplog)) == len(stage.reported) == 1


def test_the_work_is_linear() -> None:
    def work(count: int) -> int:
        made = Stage()
        made.begin(service("web", 1))
        bodies = [spec_with(count), spec_with(count, "fd00::{:x}")]

        def run() -> None:
            for body in bodies:
                edit(made, body)

        return instructions(run)

    assert work(2000) < 4.5 * work(500)


def test_many_conflicts_are_one_line_and_one_event(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    older = msgspec.structs.replace(service("older", 8), created="2026-01-01T00:00:00Z")
    younger = msgspec.structs.replace(service("younger", 7), created="2026-02-01T00:00:00Z")
    shared = tuple(bytes((192, 0, 2, number)) for number in range(200))
    for each in (older, younger):
        stage.handle_event(msgspec.structs.replace(each, external_ips=shared))
    stage.settle()
    assert len(lines(caplog)) == len(stage.reported) == 1
    assert stage.reported[0].reason is ProblemReason.FRONTEND_CONFLICT
    assert len(stage.agent.problems()) == NAMED_PROBLEMS + 1


HOSTILE = "a\nb\r\x1b[2J\x07\u202e\u2028\ud800\0"


@pytest.mark.parametrize("part", ["name", "field", "message"])
def test_texts_of_tenants_are_printable_and_short(part: str) -> None:
    texts = {"name": "shop/web", "field": "spec", "message": "wrong"}
    texts[part] = HOSTILE + "x" * 2**20
    problem = Problem("Service", texts["name"], texts["field"], texts["message"])
    assert str(problem).isprintable()
    assert len(str(problem)) < 1500
    str(problem).encode()
    assert r"a\nb\r\x1b[2J\x07\u202e\u2028\ud800\x00" in getattr(problem, part)
