"""A pod that fills an accept queue of the kernel: other clients have others."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.config import ListenAddress
from pyproxy.health.sockets import Sockets, bind
from pyproxy.model.address import Address
from tests.namespaces import empty_namespace
from tests.waiting import PATIENCE

pytestmark = pytest.mark.kernel

NODE, NODE6 = "192.0.2.1", "2001:db8::1"
ATTACKER, OTHERS = "192.0.2.2", [f"192.0.2.{number}" for number in range(10, 42)]
NETWORKS6 = [f"2001:db8:{number:x}" for number in range(1, 33)]
QUEUES, LENGTH = 16, 8


@pytest.fixture
def node() -> Iterator[Namespace]:
    with empty_namespace("node") as made:
        made.ip(["link set lo up"])
        # The kernel's own limit of a queue, so that few connections fill one.
        made.sysctl({"core/somaxconn": LENGTH})
        yield made


@pytest.fixture
def pod(node: Namespace) -> Iterator[Namespace]:
    with empty_namespace("pod") as made:
        node.ip(
            [
                f"link add eth0 type veth peer name eth0 netns {made.name}",
                f"addr add {NODE}/24 dev eth0",
                f"addr add {NODE6}/32 dev eth0 nodad",
                "link set eth0 up",
            ]
        )
        made.ip(
            [
                *(f"addr add {each}/24 dev eth0" for each in (ATTACKER, *OTHERS)),
                *(
                    f"addr add {each}::{host}/32 dev eth0 nodad"
                    for each in NETWORKS6
                    for host in (1, 2)
                ),
                "link set eth0 up",
            ]
        )
        yield made


@pytest.fixture
def sockets(node: Namespace) -> Iterator[Sockets]:
    made = node.call(lambda: bind(ListenAddress(Address(bytes(4)), 0), QUEUES, own=True))
    yield made
    assert made.own is not None
    for each in (*made.public, made.own):
        each.close()


def port_of(sockets: Sockets) -> int:
    port: int = sockets.public[0].getsockname()[1]
    return port


def connected(
    where: Namespace, host: str, port: int, sources: list[str], patience: float = PATIENCE
) -> int:
    """Count the sources from which a connection is made; they stay open meanwhile."""

    def connect() -> int:
        with ExitStack() as stack:
            done = 0
            for source in sources:
                with suppress(TimeoutError):
                    stack.enter_context(
                        socket.create_connection((host, port), patience, (source, 0))
                    )
                    done += 1
            return done

    return where.call(connect)


def queues_used(sockets: Sockets) -> list[int]:
    """Accept all waiting connections; return the number of the queue of each."""
    found = []
    assert sockets.own is not None
    for number, each in enumerate((*sockets.public, sockets.own)):
        with suppress(BlockingIOError):
            while True:
                each.accept()[0].close()
                found.append(number)
    return found


def test_a_full_queue_keeps_out_few_others(
    node: Namespace, pod: Namespace, sockets: Sockets
) -> None:
    port = port_of(sockets)

    def fill() -> list[socket.socket]:
        found: list[socket.socket] = []
        with suppress(TimeoutError):
            while len(found) < 20 * LENGTH:
                # A queue has room for LENGTH connections, so only a later one meets silence.
                patience = PATIENCE if len(found) < LENGTH else 0.2
                found.append(socket.create_connection((NODE, port), patience, (ATTACKER, 0)))
        return found

    with ExitStack() as stack:
        held = [stack.enter_context(closing(each)) for each in pod.call(fill)]
        assert LENGTH <= len(held) < 3 * LENGTH
        # Each of the 32 has the attacker's queue with a probability of 1/16.
        assert connected(pod, NODE, port, OTHERS, 0.2) > len(OTHERS) // 2
        assert connected(node, NODE, port, [NODE]) == 1


def test_a_client_has_one_queue_and_many_clients_have_all(
    node: Namespace, pod: Namespace, sockets: Sockets
) -> None:
    port = port_of(sockets)
    assert connected(pod, NODE, port, [ATTACKER] * 5) == 5
    assert len(set(queues_used(sockets))) == 1
    connected(pod, NODE, port, OTHERS)
    assert len(set(queues_used(sockets))) > QUEUES // 3
    for network in NETWORKS6[:4]:
        connected(pod, NODE6, port, [f"{network}::1", f"{network}::2"])
        assert len(set(queues_used(sockets))) == 1
    connected(pod, NODE6, port, [f"{network}::1" for network in NETWORKS6])
    assert len(set(queues_used(sockets))) > QUEUES // 3
    for host, source in ((NODE, NODE), ("127.0.0.1", "127.0.0.1"), (NODE6, NODE6), ("::1", "::1")):
        connected(node, host, port, [source])
        assert queues_used(sockets) == [QUEUES]
