"""When the agent writes, what it writes, and what it does when the kernel says no."""

from __future__ import annotations

import errno

import msgspec
import pytest

from pyproxy.dataplane.interface import Drift
from pyproxy.errors import (
    KernelError,
    PermissionKernelError,
    Problem,
    RejectedError,
    StaleStateError,
    TransientKernelError,
)
from pyproxy.model.address import parse_address
from pyproxy.model.events import Delete, InvalidObject, Synced, Upsert
from pyproxy.model.objects import Kind, ObjectName
from tests.agent.objects import NODE, Stage
from tests.builders import endpoint_slice, name, service

WEB = service("web", 1)
WEB_SLICE = endpoint_slice("web", ["10.244.1.5", "10.244.2.5"])
API = service("api", 2)
API_SLICE = endpoint_slice("api", ["10.244.1.6"])


@pytest.mark.parametrize("missing", list(Kind))
def test_nothing_is_written_before_every_list_is_whole(missing: Kind) -> None:
    stage = Stage()
    stage.handle_event(WEB, WEB_SLICE, NODE)
    for kind in Kind:
        if kind is not missing:
            stage.agent.handle_event(Synced(kind, frozenset({name("web"), name("web-0")})))
    assert stage.agent.due() is None
    stage.agent.handle_event(Synced(missing, frozenset({name("web"), name("web-0")})))
    assert stage.is_due()


def test_the_first_commit_is_one_transaction_with_everything() -> None:
    stage = Stage()
    stage.begin(WEB, WEB_SLICE, API, API_SLICE)
    (delta,) = stage.dataplane.commits
    assert len(delta.add["services4"]) == 2
    assert len(delta.add["endpoints4"]) == 3
    assert not delta.remove
    assert stage.health.is_healthy()


def test_one_change_writes_the_rows_of_one_service() -> None:
    stage = Stage()
    stage.begin(WEB, WEB_SLICE, API, API_SLICE)
    stage.handle_event(endpoint_slice("web", ["10.244.1.5"]))
    stage.settle()
    assert stage.recorder.commits[-1].routings.keys() == {name("web")}
    assert stage.dataplane.reads == 1


def test_an_event_that_changes_nothing_makes_nothing_due() -> None:
    stage = Stage()
    stage.begin(WEB, WEB_SLICE)
    stage.handle_event(WEB, WEB_SLICE, NODE)
    assert stage.agent.due() is None


def test_a_change_beside_the_answer_writes_nothing() -> None:
    stage = Stage()
    stage.begin(WEB, WEB_SLICE)
    stage.handle_event(msgspec.structs.replace(WEB_SLICE, triggered=5.0))
    stage.settle()
    assert len(stage.dataplane.commits) == 1


def test_what_a_new_list_does_not_name_is_gone() -> None:
    stage = Stage()
    stage.begin(WEB, WEB_SLICE, API, API_SLICE)
    stage.agent.handle_event(Synced(Kind.SERVICE, frozenset({name("api")})))
    stage.settle()
    assert stage.serving() == ["shop/api:http"]


def test_a_slice_may_come_before_its_service() -> None:
    stage = Stage()
    stage.begin(WEB_SLICE)
    stage.handle_event(WEB)
    stage.settle()
    assert len(stage.dataplane.kernel["endpoints4"]) == 2


def test_a_slice_that_moves_serves_its_new_service_alone() -> None:
    stage = Stage()
    stage.begin(WEB, WEB_SLICE, API)
    stage.handle_event(msgspec.structs.replace(WEB_SLICE, service=name("api")))
    stage.settle()
    assert stage.recorder.commits[-1].routings.keys() == {name("web"), name("api")}
    assert len(stage.dataplane.kernel["no-endpoint-services4"]) == 1
    assert len(stage.dataplane.kernel["endpoints4"]) == 2


def test_a_service_that_goes_takes_its_rows_along() -> None:
    stage = Stage()
    stage.begin(WEB, WEB_SLICE)
    stage.agent.handle_event(Delete(Kind.SERVICE, name("web")))
    stage.settle()
    assert set(stage.dataplane.kernel) == {"pods4", "node-port-addresses4", "node-port-addresses6"}


def test_a_node_that_moves_moves_its_node_ports() -> None:
    stage = Stage()
    stage.begin(service("web", 1, node_port=30080), WEB_SLICE)
    stage.handle_event(msgspec.structs.replace(NODE, addresses=(parse_address("172.30.0.99"),)))
    stage.settle()
    kernel = stage.dataplane.kernel
    assert kernel["node-port-addresses4"] == {parse_address("172.30.0.99"): b""}
    assert len(kernel["node-ports4"]) == 1


def test_a_node_that_goes_is_no_place_to_send_clients_to() -> None:
    stage = Stage()
    stage.begin(WEB, WEB_SLICE)
    stage.agent.handle_event(Delete(Kind.NODE, ObjectName("", NODE.name)))
    stage.settle()
    assert not stage.health.report().node_eligible
    assert stage.health.is_healthy()


def test_a_node_that_is_missing_from_a_new_list_is_deleted_too() -> None:
    stage = Stage()
    stage.begin(WEB, WEB_SLICE)
    here = ObjectName("", NODE.name)
    stage.agent.handle_event(Synced(Kind.NODE, frozenset({here})))
    assert stage.health.report().node_eligible
    stage.agent.handle_event(Synced(Kind.NODE, frozenset()))
    assert not stage.health.report().node_eligible
    stage.handle_event(NODE)
    assert stage.health.report().node_eligible


def test_syncs_keep_their_distance() -> None:
    stage = Stage(min_sync_period=5.0)
    stage.begin(WEB, WEB_SLICE)
    stage.handle_event(API)
    assert stage.agent.due() == stage.clock() + 5.0


@pytest.mark.parametrize(
    "error",
    [
        TransientKernelError("EBUSY", errno.EBUSY),
        StaleStateError("ENOENT", errno.ENOENT),
        RejectedError("EINVAL", errno.EINVAL),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_sync_that_fails_is_tried_again_from_what_the_kernel_holds(error: KernelError) -> None:
    stage = Stage()
    stage.begin(WEB, WEB_SLICE)
    stage.dataplane.trouble = [error, error]
    stage.handle_event(API, API_SLICE)
    stage.agent.sync()
    assert not stage.is_due()
    assert stage.agent.sync_error == str(error)
    stage.settle()
    assert stage.agent.sync_error == ""
    assert len(stage.dataplane.kernel["services4"]) == 2
    assert stage.dataplane.reads == 3
    assert stage.health.is_healthy()


def test_retries_come_later_and_later() -> None:
    stage = Stage()
    stage.begin(WEB, WEB_SLICE)
    stage.dataplane.trouble = [TransientKernelError("EBUSY", errno.EBUSY)] * 12
    stage.handle_event(API)
    waits = []
    for _ in range(12):
        stage.agent.sync()
        due = stage.agent.due()
        assert due is not None
        waits.append(due - stage.clock())
        stage.clock.now = due
    assert waits == sorted(waits)
    assert waits[0] < 1
    assert waits[-1] == 30


def test_a_missing_right_ends_the_agent() -> None:
    stage = Stage()
    stage.begin(WEB, WEB_SLICE)
    stage.dataplane.trouble = [PermissionKernelError("EPERM", errno.EPERM)]
    stage.handle_event(API)
    with pytest.raises(PermissionKernelError):
        stage.agent.sync()


def test_rows_that_vanish_behind_its_back_come_back_with_the_next_change() -> None:
    stage = Stage()
    stage.begin(WEB, WEB_SLICE)
    stage.dataplane.kernel = {}
    stage.agent.handle_event(Delete(Kind.SERVICE, name("web")))
    stage.handle_event(API, API_SLICE)
    stage.settle()
    assert len(stage.dataplane.kernel["services4"]) == 1
    assert "pods4" in stage.dataplane.kernel


def test_what_cannot_be_read_is_reported_once_and_counted_until_it_is_well() -> None:
    stage = Stage()
    stage.begin(WEB, WEB_SLICE)
    problem = Problem("Service", "shop/web", "spec.ports", "not a list")
    for _ in range(2):
        stage.agent.handle_event(Delete(Kind.SERVICE, name("web")))
        stage.agent.handle_event(InvalidObject(problem))
    stage.settle()
    assert stage.reported == [problem]
    assert set(stage.dataplane.kernel) == {"pods4", "node-port-addresses4", "node-port-addresses6"}
    assert stage.metrics_by_kind() == {"Service": 1, "EndpointSlice": 0, "Node": 0}
    stage.handle_event(WEB)
    stage.settle()
    assert stage.metrics_by_kind() == {"Service": 0, "EndpointSlice": 0, "Node": 0}


def test_of_two_services_with_one_address_the_older_is_served() -> None:
    stage = Stage()
    older, younger = service("older", 9, created="2026-01-01"), service("new", 9, created="2026-02")
    stage.begin(younger, endpoint_slice("new", ["10.244.1.7"]))
    stage.handle_event(older, endpoint_slice("older", ["10.244.1.8"]))
    stage.settle()
    assert stage.serving() == ["shop/older:http"]
    assert [problem.name for problem in stage.reported] == ["shop/new"]
    stage.agent.handle_event(Delete(Kind.SERVICE, name("older")))
    stage.settle()
    assert stage.serving() == ["shop/new:http"]


def test_latencies_are_measured_from_the_reading_of_a_change() -> None:
    stage = Stage()
    stage.begin(WEB, WEB_SLICE)
    stage.clock.now += 10
    stage.agent.handle_event(Upsert(API, stage.clock() - 0.25))
    stage.handle_event(endpoint_slice("api", ["10.244.1.9"], triggered=stage.clock() - 2))
    stage.settle()
    assert stage.sample("pyproxy_programming_latency_seconds_count") == 2
    assert stage.sample("pyproxy_programming_latency_seconds_sum") == pytest.approx(0.25)
    assert stage.sample("kubeproxy_network_programming_duration_seconds_sum") == pytest.approx(2)


def test_trigger_times_of_another_change_or_before_the_start_do_not_count() -> None:
    stage = Stage()
    stage.begin(WEB, WEB_SLICE)
    before_start = stage.clock() - 1
    stage.clock.now += 10
    triggered = stage.clock() - 2
    for addresses, at in (
        (["10.244.1.7"], before_start),
        (["10.244.1.8"], triggered),
        (["10.244.1.9"], triggered),
    ):
        stage.handle_event(endpoint_slice("web", addresses, triggered=at))
        stage.settle()
    assert stage.sample("kubeproxy_network_programming_duration_seconds_count") == 1


def test_a_service_that_the_kernel_refuses_is_set_aside_alone_until_it_changes() -> None:
    stage = Stage()
    stage.dataplane.refuses = name("web")
    stage.begin(WEB, WEB_SLICE, API, API_SLICE)
    assert stage.serving() == ["shop/api:http"]
    assert [problem.name for problem in stage.reported] == ["shop/web"]
    assert stage.metrics_by_kind()["Service"] == 1
    assert name("web") not in stage.recorder.commits[-1].routings
    reads = stage.dataplane.reads
    stage.dataplane.refuses = None
    stage.handle_event(endpoint_slice("web", ["10.244.1.5"]))
    stage.settle()
    assert stage.dataplane.reads == reads + 1
    assert stage.serving() == ["shop/api:http", "shop/web:http"]
    assert stage.metrics_by_kind()["Service"] == 0


def test_what_vanished_unseen_is_no_longer_set_aside() -> None:
    stage = Stage()
    stage.begin(service("web", 1))
    odd = msgspec.structs.replace(
        service("odd", 2), problems=(Problem("Service", "shop/odd", "spec", "x"),)
    )
    stage.handle_event(odd)
    stage.agent.handle_event(InvalidObject(Problem("Service", "shop/spoilt", "spec", "y")))
    stage.agent.handle_event(InvalidObject(Problem("Service", "shop/still", "spec", "y")))
    stage.agent.sync()
    assert stage.metrics_by_kind()["Service"] == 3
    names = frozenset({name("web")})
    stage.agent.handle_event(Synced(Kind.SERVICE, names, frozenset({"shop/still"})))
    stage.settle()
    stage.handle_event(service("another", 3))
    stage.agent.sync()
    assert stage.metrics_by_kind()["Service"] == 1


def test_what_is_set_aside_is_counted_where_no_sync_is_due_for_it() -> None:
    stage = Stage()
    stage.begin(WEB, WEB_SLICE)
    commits = len(stage.recorder.commits)
    for which in ("spoilt", "rotten"):
        stage.agent.handle_event(InvalidObject(Problem("Service", f"shop/{which}", "spec", "y")))
    stage.agent.handle_event(InvalidObject(Problem("Service", "shop/spoilt", "spec", "another")))
    assert stage.metrics_by_kind()["Service"] == 2
    stage.agent.handle_event(Synced(Kind.SERVICE, frozenset({name("web")})))
    assert stage.metrics_by_kind()["Service"] == 0
    assert len(stage.recorder.commits) == commits


def test_an_object_that_we_stumble_over_costs_itself_alone() -> None:
    stage = Stage()
    poison = msgspec.structs.replace(WEB, ports=None)  # what no decoder makes
    stage.begin(poison, WEB_SLICE, API, API_SLICE)
    assert stage.serving() == ["shop/api:http"]
    assert [problem.name for problem in stage.reported] == ["shop/web"]
    assert stage.health.is_healthy()
    stage.handle_event(WEB)
    stage.settle()
    assert stage.serving() == ["shop/api:http", "shop/web:http"]
    assert stage.metrics_by_kind()["Service"] == 0


@pytest.mark.parametrize("found", [Drift("ipvsadm"), TransientKernelError("EBUSY", errno.EBUSY)])
def test_what_only_looking_brings_to_light_has_the_kernel_read_back(
    found: Drift | KernelError,
) -> None:
    stage = Stage()
    stage.begin(WEB, WEB_SLICE)
    stage.agent.tick()
    assert stage.agent.due() is None
    stage.dataplane.ticks.append(found)
    stage.agent.tick()
    stage.settle()
    assert stage.dataplane.reads == 2
