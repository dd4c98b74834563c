"""The agent killed at the worst of times, and what the next one makes of it; with packets."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from pyproxy_lab.apiserver.server import ApiServer

from pyproxy.dataplane.nftables.schema import SERVICES
from pyproxy.model.address import Family
from tests.agent.live import Object, Stage, addresses, endpoint_slice, service
from tests.waiting import PATIENCE

pytestmark = pytest.mark.packets

MANY = 400
FRONTENDS = SERVICES.of(Family.IPV4)

BEFORE = {"web": ("a1", "b1"), "api": ("a2",), "new": (), "old": ("b2",)}
AFTER = {"web": ("b1", "b2"), "api": ("a1", "a2", "b1"), "new": ("b2",), "old": ()}
ADDRESSES = {name: f"10.96.7.{number}" for number, name in enumerate(BEFORE, 1)}


def watched(pods: dict[str, tuple[str, ...]]) -> list[Object]:
    """Write the Services that packets are sent to."""
    return [
        obj
        for name, those in pods.items()
        for obj in (service(name, ADDRESSES[name]), endpoint_slice(name, addresses(*those)))
    ]


def crowd(seed: int) -> list[Object]:
    """Write Services without clients; each seed has other endpoints."""
    chance = random.Random(seed)
    return [
        obj
        for number in range(MANY)
        for obj in (
            service(f"crowd-{number}", f"10.97.{number >> 8}.{number & 255}"),
            endpoint_slice(
                f"crowd-{number}",
                [f"10.244.9.{host}" for host in chance.sample(range(2, 250), chance.randint(0, 6))],
            ),
        )
    ]


def change_everything(server: ApiServer) -> None:
    """Write to the API server what a test ends with, the watched Services among the others."""
    objects = [*crowd(2), *watched(AFTER)]
    random.Random(3).shuffle(objects)
    for obj in objects:
        server.load([obj])


def at_once(stage: Stage, server: ApiServer) -> None:
    change_everything(server)


def at_the_first_commit(stage: Stage, server: ApiServer) -> None:
    with stage.commits() as commits:
        change_everything(server)
        assert commits.count(seconds=PATIENCE)


def halfway(stage: Stage, server: ApiServer) -> None:
    objects = [*crowd(2), *watched(AFTER)]
    for obj in objects[: len(objects) // 2]:
        server.load([obj])
    with stage.commits() as commits:
        for obj in objects[len(objects) // 2 :]:
            server.load([obj])
        assert commits.count(seconds=PATIENCE)


def check_packets(stage: Stage) -> None:
    for name, pods in AFTER.items():
        outcome = stage.probe(f"{ADDRESSES[name]}:80", who="a2")
        assert outcome.reached.keys() == set(pods)
        assert not outcome.dropped
        assert bool(outcome.refused) is (not pods)


@pytest.mark.parametrize("until", [at_once, at_the_first_commit, halfway])
def test_killed_in_a_batch_of_changes(
    stage: Stage, until: Callable[[Stage, ApiServer], None]
) -> None:
    with stage.server() as server:
        server.load([*crowd(1), *watched(BEFORE)])
        with stage.agent(server.url) as agent:
            stage.until_served(agent, server, "all Services in the kernel")
            until(stage, server)
            agent.kill()
        change_everything(server)
        with stage.agent(server.url) as agent:
            stage.until_served(agent, server, "what the API server has by now")
            check_packets(stage)
            agent.require_alive()


@pytest.mark.parametrize("empty", [True, False])
def test_killed_while_it_starts(stage: Stage, empty: bool) -> None:
    """Between loading the ruleset and the elements, or just after these were committed."""
    with stage.server() as server:
        server.load([*crowd(2), *watched(AFTER)])
        with stage.agent(server.url) as agent, stage.commits() as commits:
            if empty:
                agent.does(commits.count, "a first transaction")
            else:
                agent.does(lambda: stage.kernel().get(FRONTENDS), "elements in the kernel")
            agent.kill()
        with stage.agent(server.url) as agent:
            stage.until_served(agent, server, "all Services in the kernel")
            check_packets(stage)


def test_killed_again_and_again_while_changes_go_on(stage: Stage) -> None:
    chance = random.Random(4)
    with stage.server() as server:
        server.load([*crowd(1), *watched(BEFORE)])
        objects = [*crowd(2), *watched(AFTER)]
        chance.shuffle(objects)
        parts = [objects[start::6] for start in range(6)]
        for part in parts:
            with stage.agent(server.url) as agent, stage.commits() as commits:
                for obj in part[: len(part) // 2]:
                    server.load([obj])
                agent.does(commits.count, "a transaction of this agent")
                for obj in part[len(part) // 2 :]:
                    server.load([obj])
                agent.kill()
        with stage.agent(server.url) as agent:
            stage.until_served(agent, server, "what the API server has by now")
            check_packets(stage)
