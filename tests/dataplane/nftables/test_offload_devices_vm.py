"""The devices of the flowtable follow the node's, with a message for each that changes."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import msgspec
import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import Changes, FlowOffloadState, NodeRouting
from pyproxy.dataplane.nftables.base_rules import NftablesOptions
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.dataplane.nftables.offload_devices import DeviceChoice, OffloadDevices
from pyproxy.policy.routing import ServiceRouting
from tests.dataplane.nftables.test_kernel_trace import HOME, service
from tests.namespaces import empty_namespace
from tests.waiting import again_and_again, until

pytestmark = [pytest.mark.kernel, pytest.mark.vm, pytest.mark.kernels(since=(5, 14))]

MANY = 200
KEEPS_NAMES = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 16)
WEB = msgspec.structs.replace(service("web", HOME, "10.244.1.11", "10.244.2.11"), offload=True)
MORE = msgspec.structs.replace(
    service("web", HOME, "10.244.1.11", "10.244.2.11", "10.244.1.12"), offload=True
)


class Node:
    """A namespace with a dataplane, and another one for the pods' ends of veths."""

    def __init__(self, namespace: Namespace, pods: Namespace) -> None:
        self._namespace = namespace
        self._pods = pods
        self.dataplane = namespace.call(self._made)

    def _made(self) -> NftablesDataplane:
        made = NftablesDataplane(NftablesOptions(), offload=OffloadDevices(DeviceChoice()))
        made.prepare()
        assert made.commit(made.plan_full([WEB], NodeRouting())) == ()
        return made

    def add(self, *names: str) -> None:
        peer = f"type veth peer name {{}} netns {self._pods.name}"
        self._namespace.ip(f"link add {name} {peer.format(name)}" for name in names)

    def remove(self, *names: str) -> None:
        self._namespace.ip(f"link del {name}" for name in names)

    def state(self) -> FlowOffloadState:
        found = self._namespace.call(self.dataplane.flow_offload)
        assert found is not None
        return found

    def follow(self, *names: str) -> None:
        """Write changes of devices until exactly these are bound."""
        self.follow_until(
            lambda: self.state().devices == tuple(sorted(names)),
            lambda: f"{len(names)} devices are bound: {self.state()}",
        )

    def follow_until(
        self,
        condition: Callable[[], object],
        what: str | Callable[[], str] = "what was waited for",
    ) -> None:
        """Write changes of devices until a condition holds."""

        def holds() -> object:
            self.dataplane.devices_changed()
            return condition()

        until(holds, what, pause=0.1)

    def serve(self, routing: ServiceRouting) -> int:
        """Change a Service, and return the messages that it took."""
        before = self.dataplane.messages_sent
        plan = self.dataplane.plan(Changes({routing.name: routing}))
        assert self._namespace.call(lambda: self.dataplane.commit(plan)) == ()
        return self.dataplane.messages_sent - before


@contextmanager
def served(namespace: Namespace, pods: Namespace) -> Iterator[Node]:
    """Serve in a namespace during the block. As in the agent one thread waits, another writes."""
    made = Node(namespace, pods)
    waiting = threading.Thread(target=_wait, args=(made.dataplane,))
    waiting.start()
    try:
        yield made
    finally:
        made.dataplane.close()
        waiting.join()


@pytest.fixture
def node() -> Iterator[Node]:
    with (
        empty_namespace("devices") as namespace,
        empty_namespace("pods") as pods,
        served(namespace, pods) as made,
    ):
        yield made


def _wait(dataplane: NftablesDataplane) -> None:
    while dataplane.wait_for_devices():
        pass


def test_two_hundred_devices_take_a_message_each(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"v{number}" for number in range(MANY)]
    # A third endpoint takes another chain, which stays.
    node.serve(MORE)
    fewer, more = node.serve(WEB), node.serve(MORE)
    before = node.dataplane.messages_sent
    node.add(*names[: MANY // 2])
    node.follow(*names[: MANY // 2])
    assert node.dataplane.messages_sent - before == MANY // 2
    node.add(*names[MANY // 2 :])
    assert node.serve(WEB) == fewer
    node.follow(*names)
    assert node.dataplane.messages_sent - before == MANY + fewer
    # The kernel itself takes a device that is deleted out of the flowtable. From Linux 6.16 on it
    # keeps the name, for another device that comes, until the agent deletes it.
    deletions = (MANY - 1) * KEEPS_NAMES
    node.remove(*names[1:])
    assert node.serve(MORE) == more
    node.follow(names[0])
    assert node.dataplane.messages_sent - before == MANY + fewer + more + deletions
    assert not [each for each in caplog.records if each.levelno > logging.INFO]


def test_a_device_that_vanishes_before_it_is_bound_costs_nothing(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"v{number}" for number in range(20)]
    node.add(*names)
    with again_and_again(node.dataplane.devices_changed):
        for _ in range(20):
            node.remove(*names[10:])
            node.add(*names[10:])
        node.remove(*names[15:])
    node.follow(*names[:15])
    assert node.state().refused == {}
    assert node.state().inactive == ""
    assert not [each for each in caplog.records if each.levelno > logging.INFO]


def test_the_end_of_a_vlan_behind_a_bridge_is_found() -> None:
    with empty_namespace("vlan") as here:
        here.ip(
            [
                "link add eth0 type veth peer name other",
                "link add link eth0 name eth0.5 type vlan id 5",
                "link add br0 type bridge",
                "link set eth0.5 master br0",
            ]
        )
        for ends, expected in ((False, {"br0"}), (True, {"eth0"})):
            devices = here.call(partial(OffloadDevices, DeviceChoice(("br0",), ends=ends)))
            assert devices.chosen() == expected
            devices.end()
            assert not devices.wait()
