"""Changes of the flowtable that fail for now, and that no later change of devices repeats."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Sequence

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nftables import flow_offload
from pyproxy.errors import KernelError, TransientKernelError
from pyproxy.netlink.kernel_errors import MessageError
from pyproxy.netlink.nfnetlink import Message, Nfnetlink
from tests.dataplane.nftables.test_offload_devices_vm import WEB, Node, served
from tests.namespaces import empty_namespace
from tests.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.vm, pytest.mark.kernels(since=(5, 14))]

_WRITES_FLOWTABLE = 22, 24
FIRST_SYNC = "the first sync is not complete"

Fault = Sequence[MessageError] | KernelError


class Kernel:
    """The kernel, with errors of a test in place of its own for transactions of flowtables."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.faults: list[Fault] = []
        self.before: Callable[[], object] = lambda: None
        self.attempts = 0
        real = Nfnetlink.transact

        def transact(
            netlink: Nfnetlink, messages: Sequence[Message], subsystem: int
        ) -> list[MessageError]:
            if not any(each.kind & 0xFF in _WRITES_FLOWTABLE for each in messages):
                return real(netlink, messages, subsystem)
            self.attempts += 1
            self.before()
            if not self.faults:
                return real(netlink, messages, subsystem)
            fault = self.faults.pop(0)
            if isinstance(fault, KernelError):
                raise fault
            return list(fault)

        monkeypatch.setattr(Nfnetlink, "transact", transact)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


@pytest.fixture
def places() -> Iterator[tuple[Namespace, Namespace]]:
    with empty_namespace("retries") as namespace, empty_namespace("pods") as pods:
        yield namespace, pods


def tick_until(node: Node, condition: Callable[[], object]) -> None:
    """Have the time pass for the dataplane alone until a condition holds."""

    def holds() -> object:
        node.dataplane.tick()
        return condition()

    until(holds, pause=0.0)


FAULTS: dict[str, Fault] = {
    "no memory for a device": [MessageError(0, errno.ENOMEM, 0, "")],
    "a device that has just gone": [MessageError(0, errno.ENODEV, 0, "")],
    "a busy kernel": [MessageError(-1, errno.EBUSY, 0, "")],
    "nothing can be sent": TransientKernelError("no room", errno.ENOBUFS),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_device_is_bound_later(
    places: tuple[Namespace, Namespace],
    kernel: Kernel,
    fault: Fault,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with served(*places) as node, caplog.at_level(logging.INFO, "pyproxy"):
        kernel.faults = [fault] * 3
        node.add("v1")
        node.follow_until(lambda: len(kernel.faults) < 3)
        assert node.state().devices == ()
        caplog.clear()
        tick_until(node, lambda: node.state().devices == ("v1",))
        assert node.state().refused == {}
        assert [each for each in caplog.messages if "flow offload" in each][1:] == []
        # Nothing is left to do.
        attempts = kernel.attempts
        for _ in range(100):
            node.dataplane.tick()
        assert kernel.attempts == attempts


def test_a_kernel_that_always_fails_is_asked_less_and_less_often(
    places: tuple[Namespace, Namespace], kernel: Kernel
) -> None:
    with served(*places) as node:
        kernel.faults = [[MessageError(0, errno.ENOMEM, 0, "")]] * 1000
        node.add("v1")
        node.follow_until(lambda: kernel.attempts > 1)
        before, attempts = kernel.attempts, []
        for number in range(1, 41):
            node.dataplane.tick()
            if kernel.attempts > before:
                before = kernel.attempts
                attempts.append(number)
        assert attempts == [1, 3, 6, 11, 20, 37]
        assert node.state().refused == {"v1": "ENOMEM"}


@pytest.mark.parametrize("fault", [FAULTS["a busy kernel"], FAULTS["nothing can be sent"]])
def test_a_first_sync_without_a_fast_path_is_no_failed_one(
    places: tuple[Namespace, Namespace], kernel: Kernel, fault: Fault
) -> None:
    kernel.faults = [fault] * 2
    with served(*places) as node:
        assert node.state().inactive == FIRST_SYNC
        tick_until(node, lambda: not node.state().inactive)


def test_a_table_that_another_program_deletes_meanwhile(
    places: tuple[Namespace, Namespace], kernel: Kernel
) -> None:
    namespace, _ = places

    def delete() -> None:
        kernel.before = lambda: None
        namespace.run(["nft", "delete", "table", "inet", "pyproxy"])

    kernel.before = delete
    with served(*places) as node:
        assert node.state().inactive == FIRST_SYNC
        # As the agent does after a drift.
        namespace.call(
            lambda: node.dataplane.commit(node.dataplane.plan_full([WEB], NodeRouting()))
        )
        assert node.state().inactive == ""


def test_another_device_of_a_name_that_was_refused_is_bound(
    places: tuple[Namespace, Namespace],
) -> None:
    namespace, pods = places
    other = "inet pyproxy other"
    with served(namespace, pods) as node:
        node.add("v0")
        place = "hook ingress priority 0; devices = { v0 };"
        namespace.run(["nft", f"add flowtable {other} {{ {place} }}"])
        node.follow_until(lambda: node.state().refused)
        assert node.state().refused.keys() == {"v0"}
        namespace.run(["nft", f"delete flowtable {other}"])
        namespace.ip(
            ["link del v0", f"link add v0 type veth peer name v0 netns {pods.name}"],
        )
        node.follow("v0")
        assert node.state().refused == {}


def test_devices_beyond_what_the_kernel_can_list_are_left_out(
    places: tuple[Namespace, Namespace],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(flow_offload, "_MOST_DEVICES", 2)
    with served(*places) as node:
        node.add("v3", "v4")
        node.follow("v3", "v4")
        # Those that are bound stay.
        node.add("v1", "v2")
        node.follow_until(lambda: caplog.messages)
        node.follow("v3", "v4")
        assert [each.partition(",")[0] for each in caplog.messages] == [
            "flow offload leaves 2 interfaces out"
        ]
        node.remove("v3")
        node.follow("v1", "v4")
