"""An agent killed at any point of a sync under changes: the next one repairs the table."""

from __future__ import annotations

import itertools
import random
import threading
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.cluster import Cluster

from tests.agent.live import Object, Stage, addresses, endpoint_slice, service
from tests.waiting import again_and_again

pytestmark = pytest.mark.packets

KILLS = 8
STARTING_SECONDS = 0.8
"""Roughly the seconds from an agent's start to its first commit."""

SYNCING_SECONDS = 0.2
CROWD = 300
PODS = ("a1", "b1", "b2")
BROADCAST = "10.244.1.255"
"""The last address of the node's pod network, which its agent leaves out of all Services."""

WATCHED = {"web": "10.96.9.1", "api": "10.96.9.2", "shop": "10.96.9.3"}


def watched(chance: random.Random) -> tuple[dict[str, list[str]], list[Object]]:
    """Choose pods, or none, of each probed Service. Return them, and the Services' objects."""
    chosen = {name: chance.sample(PODS, chance.randint(0, 3)) for name in WATCHED}
    objects = [
        obj
        for name, address in WATCHED.items()
        for obj in (service(name, address), endpoint_slice(name, addresses(*chosen[name])))
    ]
    return chosen, objects


def crowd(chance: random.Random, number: int) -> list[Object]:
    """Return one of many Services; some are large, so that a sync takes longer."""
    size = chance.choice([0, 1, 2, 3, 5, 9, 200])
    hosts = chance.sample(range(1 << 9, 1 << 16), size)
    places = [f"10.244.{host >> 8}.{host & 255}" for host in hosts]
    if number % 10 == 0:
        places.append(BROADCAST)
    name = f"crowd-{number}"
    return [
        service(name, f"10.97.{number >> 8}.{number & 255}"),
        endpoint_slice(name, places),
    ]


def changing(server: ApiServer, chance: random.Random) -> AbstractContextManager[None]:
    """Change one Service after the other during the block, as fast as the API server accepts."""
    numbers = itertools.cycle(range(CROWD))
    return again_and_again(lambda: server.load(crowd(chance, next(numbers))))


def test_killed_at_any_point_the_state_converges(cluster: Cluster, tmp_path: Path) -> None:
    chance = random.Random(20)
    stage = Stage(cluster.network, tmp_path)
    with stage.server() as server:
        server.load([obj for number in range(CROWD) for obj in crowd(chance, number)])
        for point in range(KILLS):
            chosen, objects = watched(chance)
            server.load(objects)
            agent = stage.agent(server.url)
            if point % 4 == 3:
                with changing(server, chance), agent:
                    threading.Event().wait(chance.uniform(0.3, 1) * STARTING_SECONDS)
                    agent.kill()
                continue
            with agent:
                stage.until_served(agent, server, f"all Services after kill {point}")
                for name, pods in chosen.items():
                    outcome = stage.probe(f"{WATCHED[name]}:80", who="a2", tries=48)
                    assert outcome.reached.keys() == set(pods)
                    assert not outcome.dropped
                with changing(server, chance), stage.commits() as commits:
                    agent.does(commits.count, "a transaction in the stream of changes")
                    threading.Event().wait(chance.uniform(0, SYNCING_SECONDS))
                    agent.kill()
        with stage.agent(server.url) as agent:
            stage.until_served(agent, server, "all Services after the last kill")
