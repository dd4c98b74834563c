"""Any sequence of commits ends in the state of the last one alone, after connections ended."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.ipvs.schema import protocol_of
from pyproxy.model.address import Protocol
from tests.dataplane.ipvs.stage import Stage
from tests.dataplane.nftables.scenes import LOCAL, Scene, scenes
from tests.examples import examples


def node_of(scene: Scene) -> NodeRouting:
    return NodeRouting(scene.node.pod_networks, scene.node_port_addresses)


def fresh(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage(monkeypatch, LOCAL)
    assert not stage.begin(scene.routings(), node_of(scene))
    return stage


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(scenes(), min_size=1, max_size=4), st.data())
def test_any_history_ends_in_the_state_compiled_from_nothing(
    history: list[Scene], data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        stage = Stage(monkeypatch, LOCAL)
        assert not stage.begin()
        for scene in history:
            busy = data.draw(st.booleans())
            if data.draw(st.booleans()):
                stage.restarted()
                assert not stage.begin(scene.routings(), node_of(scene))
            else:
                assert not stage.change(scene.routings(), node_of(scene))
            for virtual, servers in stage.kernel.table.items() if busy else ():
                for backend in servers:
                    stage.kernel.connections[virtual, backend] = 1
            stage.dataplane.tick()
        stage.hang_up()
        sent = stage.sent()
        stage.dataplane.tick()
        assert stage.sent() == sent
        assert stage.state() == fresh(history[-1], monkeypatch).state()


@settings(max_examples=examples(60), deadline=None)
@given(scenes())
def test_a_restart_writes_nothing(scene: Scene) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        stage = fresh(scene, monkeypatch)
        sent = stage.sent()
        stage.restarted()
        plan = stage.dataplane.plan_full(scene.routings().values(), node_of(scene))
        assert not plan, str(plan)
        assert not stage.dataplane.commit(plan)
        assert stage.sent() == sent


@settings(max_examples=examples(60), deadline=None)
@given(scenes(), scenes())
def test_tcp_connections_keep_their_server_virtual_service_and_address(
    before: Scene, after: Scene
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        stage = fresh(before, monkeypatch)
        had = {virtual: set(servers) for virtual, servers in stage.kernel.table.items()}
        for virtual, servers in had.items():
            for backend in servers:
                stage.kernel.connections[virtual, backend] = 1
        on_device = set(stage.kernel.on_device)
        stage.change(after.routings(), node_of(after))
        stage.dataplane.tick()
        for virtual, servers in had.items():
            if protocol_of(virtual) == Protocol.TCP:
                assert servers <= stage.kernel.table[virtual].keys()
                if not virtual.mark and virtual.address in on_device:
                    assert virtual.address in stage.kernel.on_device
