"""How the agent handles every errno, and the errors that a real kernel can be made to return."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import Drift
from pyproxy.errors import (
    KernelError,
    PermissionKernelError,
    RejectedError,
    StaleStateError,
    TransientKernelError,
)
from pyproxy.model.events import Delete, Event, Upsert
from pyproxy.model.objects import Kind
from pyproxy.netlink.elements import Shape, add_elements
from pyproxy.netlink.kernel_errors import kernel_error
from pyproxy.netlink.nfnetlink import Message, Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM, delete_chain, delete_table
from pyproxy.netlink.rules import new_chain
from tests.agent.objects import Clock, Stage
from tests.builders import endpoint_slice, name, service
from tests.chaos.kernel_agent import Snapshot, SteppedAgent

WEB, WEB_SLICE = service("web", 1), endpoint_slice("web", ["10.244.1.5", "10.244.2.5"])
API, API_SLICE = service("api", 2), endpoint_slice("api", ["10.244.1.6"])
GROWN = endpoint_slice("web", ["10.244.1.5", "10.244.2.5", "10.244.2.6", "10.244.2.7"])
SHRUNK = endpoint_slice("web", ["10.244.1.5"])
WEB_KEY = "10.96.0.1 . tcp . 80"

FAMILIES: dict[type[KernelError], frozenset[int]] = {
    # Retried against the kernel state of that moment.
    TransientKernelError: frozenset(
        (errno.EINTR, errno.EAGAIN, errno.ENOBUFS, errno.EBUSY, errno.ENOMEM)
    ),
    # The state is read back and the plan made again.
    StaleStateError: frozenset((errno.ENOENT, errno.EEXIST, errno.ESRCH)),
    # The agent ends, and names the capability that it lacks.
    PermissionKernelError: frozenset((errno.EPERM, errno.EACCES)),
}
"""Every other errno is a RejectedError: a retry cannot succeed, so its object is invalid."""

KNOWN_TO_NETFILTER = (
    *("EPERM", "ENOENT", "ESRCH", "EINTR", "E2BIG", "EAGAIN", "ENOMEM", "EACCES", "EFAULT"),
    *("EBUSY", "EEXIST", "EXDEV", "ENODEV", "EINVAL", "ENFILE", "EMFILE", "ENOSPC", "EMLINK"),
    *("ERANGE", "ENAMETOOLONG", "ELOOP", "EOVERFLOW", "EBADMSG", "EMSGSIZE", "EOPNOTSUPP"),
    *("EPROTONOSUPPORT", "EAFNOSUPPORT", "ENOBUFS", "ETIMEDOUT", "ECONNREFUSED", "ENETDOWN"),
)
"""The errnos of nf_tables, nfnetlink and their sockets, in net/netfilter and net/netlink."""


def family(number: int) -> type[KernelError]:
    found = (kind for kind, numbers in FAMILIES.items() if number in numbers)
    return next(found, RejectedError)


@pytest.mark.parametrize("number", sorted(errno.errorcode), ids=errno.errorcode.__getitem__)
def test_each_errno_is_handled_by_its_kind(number: int) -> None:
    error = kernel_error(number, "a batch")
    assert type(error) is family(number)
    assert error.errno == number
    assert str(error) == f"{errno.errorcode[number]}: a batch"
    stage = Stage()
    stage.begin(WEB, WEB_SLICE)
    stage.dataplane.trouble = [error, error]
    stage.handle_event(API, API_SLICE)
    if isinstance(error, PermissionKernelError):
        with pytest.raises(PermissionKernelError):
            stage.agent.sync()
        return
    stage.agent.sync()
    assert not stage.is_due()
    stage.settle()
    assert len(stage.dataplane.kernel["services4"]) == 2
    assert stage.dataplane.reads == 3
    assert stage.sample("kubeproxy_sync_proxy_rules_nftables_sync_failures_total") == 2


def test_every_errno_of_netfilter_is_known() -> None:
    assert {getattr(errno, each) for each in KNOWN_TO_NETFILTER} <= errno.errorcode.keys()


def test_an_errno_without_a_name_is_shown_as_a_number() -> None:
    unnamed = kernel_error(
        524, "a batch"
    )  # ENOTSUPP, which the kernel should not return to programs
    assert isinstance(unnamed, RejectedError)
    assert str(unnamed) == "524: a batch"


class UnawareAgent(SteppedAgent):
    """An agent without drift notifications, which meets changes only in its own commits."""

    def __init__(self, namespace: Namespace) -> None:
        self.clock = Clock()
        super().__init__(namespace, self.clock)

    def then(self, *events: Event) -> Snapshot:
        """Apply events, sync until nothing is due, and return the kernel state."""

        def settle() -> None:
            for event in events:
                self.agent.handle_event(event)
            while (due := self.agent.due()) is not None:
                self.clock.now = max(self.clock.now, due)
                self.agent.sync()

        self.namespace.call(settle)
        return self.snapshot()

    def harm(self, text: str) -> None:
        self.namespace.run(["nft", "-f", "-"], text=text)

    def failures(self) -> float:
        return self.metric("kubeproxy_sync_proxy_rules_nftables_sync_failures_total")


@pytest.fixture
def unaware(namespace: Namespace) -> Iterator[UnawareAgent]:
    made = UnawareAgent(namespace)
    yield made
    made.close()


EVENT_TIME = 1000.0
OUT_OF_STEP: dict[str, tuple[str, Event, str]] = {
    "an endpoint to remove is gone": (
        f"delete element inet pyproxy endpoints4 {{ {WEB_KEY} . 1 }}",
        Upsert(SHRUNK, EVENT_TIME),
        "ENOENT",
    ),
    "a verdict to change is gone": (
        f"delete element inet pyproxy services4 {{ {WEB_KEY} }}",
        Upsert(GROWN, EVENT_TIME),
        "ENOENT",
    ),
    "a slot is taken": (
        f"add element inet pyproxy endpoints4 {{ {WEB_KEY} . 2 : 10.244.9.9 . 9 }}",
        Upsert(GROWN, EVENT_TIME),
        "EEXIST",
    ),
    "the table is gone": ("delete table inet pyproxy", Upsert(GROWN, EVENT_TIME), "ENOENT"),
    "a map is gone": (
        "flush chain inet pyproxy services; delete map inet pyproxy services4",
        Upsert(GROWN, EVENT_TIME),
        "ENOENT",
    ),
    "a Service goes that is gone": (
        "flush map inet pyproxy services4; flush map inet pyproxy endpoints4",
        Delete(Kind.SERVICE, name("web")),
        "ENOENT",
    ),
}


@pytest.mark.kernel
@pytest.mark.parametrize("case", OUT_OF_STEP)
def test_a_kernel_state_out_of_step_is_read_back_and_repaired(
    unaware: UnawareAgent, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    text, event, reason = OUT_OF_STEP[case]
    unaware.start(WEB, WEB_SLICE, API, API_SLICE)
    unaware.harm(text)
    with caplog.at_level("INFO"):
        after = unaware.then(event)
    assert unaware.failures() == 1
    assert f"reading the kernel back to try again: {reason}" in caplog.text
    unaware.agent.drifted(Drift("nft"))
    assert unaware.then() == after
    assert not unaware.repairs()
    assert not unaware.reported


@pytest.fixture
def netlink(namespace: Namespace) -> Iterator[Nfnetlink]:
    made = namespace.call(Nfnetlink)
    yield made
    made.close()


FULL = (
    "add table inet t; add set inet t s { type inet_service; size 2; }; "
    "add element inet t s { 1, 2 }"
)


def new_element(key: bytes) -> Message:
    (write,) = add_elements("t", "s", {key: b""}, Shape.EXACT)
    return write.message


PROVOKED: dict[str, tuple[str, Message, int]] = {
    "a key that is too long": (FULL, new_element(bytes(8)), errno.EINVAL),
    "a set that is full": (FULL, new_element(b"\0\3"), errno.ENFILE),
    "a chain that is in use": (
        "add table inet t; add chain inet t a; add chain inet t b; add rule inet t a jump b",
        delete_chain("t", "b"),
        errno.EBUSY,
    ),
    "a table that is not there": ("", delete_table("t"), errno.ENOENT),
    "a name that is too long": ("", delete_table("t" * 300), errno.ERANGE),
    "a message that there is not": ("", Message(SUBSYSTEM << 8 | 99, 0, b""), errno.EINVAL),
}


@pytest.mark.kernel
@pytest.mark.parametrize("case", PROVOKED)
def test_an_error_names_the_message_that_the_kernel_rejects(
    namespace: Namespace, netlink: Nfnetlink, case: str
) -> None:
    text, message, number = PROVOKED[case]
    good = new_chain("t", "good") if text else delete_table("elsewhere")
    namespace.run(["nft", "-f", "-"], text=text)
    errors = netlink.transact([good, message], SUBSYSTEM)
    assert [(each.index, each.errno) for each in errors][-1:] == [(1, number)]
    assert isinstance(errors[-1].error, family(number))
    assert "good" not in namespace.run(["nft", "list", "ruleset"]).stdout


@pytest.mark.kernel
def test_replies_that_overflow_the_socket_are_a_transient_error(netlink: Nfnetlink) -> None:
    netlink._socket._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    with pytest.raises(TransientKernelError, match="ENOBUFS"):
        netlink.transact([delete_table(f"t{number}") for number in range(1000)], SUBSYSTEM)


WITHOUT_RIGHTS = """
from pyproxy.agent.rights import keep_only
from pyproxy.errors import PermissionKernelError
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM, delete_table, get_tables
netlink = Nfnetlink()
keep_only(frozenset())
for work in (
    lambda: netlink.transact([delete_table("t")], SUBSYSTEM)[0].error,
    lambda: list(netlink.dump(get_tables())),
):
    try:
        error = work()
    except PermissionKernelError as raised:
        error = raised
    print(type(error).__name__, error.errno)
"""


@pytest.mark.kernel
def test_a_lost_capability_is_a_permission_error(namespace: Namespace) -> None:
    lines = namespace.run([sys.executable, "-c", WITHOUT_RIGHTS]).stdout.splitlines()
    assert lines == [f"PermissionKernelError {errno.EPERM}"] * 2


COLD_START = [sys.executable, "-m", "tests.chaos.cold_start"]
LARGEST_PART = 400 << 10
"""Bytes of a part if buffers cannot grow."""

BYTES_OF_AN_ENDPOINT = 44
"""At least so many bytes of netlink messages for each endpoint of a Service."""

LIMITED = ["unshare", "--user", "--map-root-user", "--net"]
"""In a user namespace, root cannot set a buffer above net.core.wmem_max."""


def cold_start(namespace: Namespace, services: int, each: int, *, within: list[str]) -> str:
    command = [*within, *COLD_START, str(services), str(each)]
    done = namespace.run(command)
    result = msgspec.json.decode(done.stdout)
    assert (
        result["kernel"]
        == result["desired"]
        == {"services4": services, "endpoints4": services * each}
    )
    assert result["right"]
    return done.stderr


@pytest.fixture
def send_buffer(namespace: Namespace) -> int:
    if namespace.run([*LIMITED, "true"], check=False).returncode:
        pytest.skip("needs user namespaces")
    return 2 * int(Path("/proc/sys/net/core/wmem_max").read_text())


@pytest.mark.kernel
def test_a_large_first_commit_succeeds(namespace: Namespace) -> None:
    assert not cold_start(namespace, 5_000, 10, within=[])


@pytest.mark.kernel
def test_a_large_first_commit_needs_no_large_buffers(
    namespace: Namespace, send_buffer: int
) -> None:
    if send_buffer < LARGEST_PART:
        pytest.skip("net.core.wmem_max is smaller than Linux has it by itself")
    assert not cold_start(namespace, 5_000, 10, within=LIMITED)


@pytest.mark.kernel
def test_a_service_larger_than_the_buffer_is_committed_in_parts(
    namespace: Namespace, send_buffer: int
) -> None:
    endpoints = send_buffer // BYTES_OF_AN_ENDPOINT + 1
    if endpoints > 200_000:
        pytest.skip("net.core.wmem_max is larger than any Service")
    log = cold_start(namespace, 1, endpoints, within=LIMITED)
    assert "bytes in several transactions" in log
