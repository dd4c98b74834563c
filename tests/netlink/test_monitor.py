"""The monitor of other programs' transactions: how it ends, and descriptors of any number."""

from __future__ import annotations

import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.errors import KernelError
from pyproxy.netlink.monitor import Foreign, Monitor
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM, delete_set
from pyproxy.netlink.sockets import NetlinkSocket
from tests.namespaces import empty_namespace
from tests.waiting import PATIENCE

pytestmark = pytest.mark.kernel


@pytest.fixture
def here() -> Iterator[Namespace]:
    with empty_namespace("monitor") as made:
        yield made


def test_a_waiting_thread_ends_even_if_the_group_cannot_be_left(
    here: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = here.call(lambda: Monitor("pyproxy", 1))
    monitor.listen()
    found: list[Foreign | None] = []
    waiting = threading.Thread(target=lambda: found.append(monitor.wait()), daemon=True)
    waiting.start()

    def fail(self: NetlinkSocket, group: int) -> None:
        raise KernelError("EPERM: a test", 1)

    monkeypatch.setattr(NetlinkSocket, "leave", fail)
    monitor.end()
    waiting.join(PATIENCE)
    assert found == [None]
    monitor.close()


def test_it_listens_again_after_the_kernel_refused(
    here: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(here.call(lambda: Monitor("pyproxy", 1))) as monitor:
        monitor.listen()
        monitor.keep_listening()
        monitor.pause()
        with monkeypatch.context() as patch:

            def fail(self: NetlinkSocket, group: int) -> None:
                raise KernelError("ENOMEM: a test", 12)

            patch.setattr(NetlinkSocket, "join", fail)
            for attempt in (monitor.listen, monitor.keep_listening):
                with pytest.raises(KernelError):
                    attempt()
        monitor.keep_listening()
        # Once for all that it may have missed.
        monitor.keep_listening()
        assert monitor.wait() == Foreign(frozenset(), "")
        here.run(["nft", "add", "table", "inet", "pyproxy"])
        found = monitor.wait()
        assert found is not None
        assert found.objects == {"table"}


def test_descriptors_above_1023_are_watched(here: Namespace) -> None:
    with ExitStack() as stack:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1024):
            stack.enter_context(socket.socket())
        monitor = here.call(lambda: Monitor("pyproxy", 1))
        stack.callback(monitor.close)
        monitor.listen()
        here.run(["nft", "add", "table", "inet", "pyproxy"])
        foreign = monitor.wait()
        assert foreign is not None
        assert foreign.objects == {"table"}


def test_own_transactions_wake_no_thread(here: Namespace) -> None:
    netlink = here.call(Nfnetlink)
    monitor = here.call(lambda: Monitor("pyproxy", netlink.port))
    with closing(netlink), closing(monitor):
        here.run(["nft", "add table inet pyproxy; add set inet pyproxy e { type ipv4_addr; }"])
        for number in range(5):
            here.run(["nft", f"add set inet pyproxy own{number} {{ type ipv4_addr; }}"])
        monitor.listen()
        for number in range(5):
            deletion = delete_set("pyproxy", f"own{number}")
            assert netlink.transact([deletion], SUBSYSTEM) == []
        received = []
        for address in ("10.0.0.1", "10.0.0.2"):
            here.run(["nft", f"add element inet pyproxy e {{ {address} }}"])
            foreign = monitor.wait()
            assert foreign is not None
            assert foreign.sets == frozenset({"e"})
            received.append(monitor.received)
        assert received[1] == 2 * received[0]


def test_sets_of_one_transaction_are_named_whatever_their_order(here: Namespace) -> None:
    monitor = here.call(lambda: Monitor("pyproxy", 1))
    sets = ("endpoints", "endpoints2", "endpoints-of-others", "e")
    made = "".join(f"add set inet {{t}} {name} {{ type ipv4_addr; }}\n" for name in sets)
    for table in ("pyproxy", "theirs"):
        here.run(["nft", "-f", "-"], text=f"add table inet {table}\n" + made.replace("{t}", table))
    monitor.listen()
    addresses = ", ".join(f"10.0.{n >> 8}.{n & 255}" for n in range(400))
    lines = [
        f"add element inet {table} {name} {{ {addresses} }}"
        for name in sets
        for table in ("theirs", "pyproxy")
        if name != "e" or table == "theirs"
    ]
    here.run(["nft", "-f", "-"], text="\n".join(lines))
    foreign = monitor.wait()
    assert foreign is not None
    assert foreign.sets == frozenset(sets[:3])
    assert foreign.objects == {"element"}
    here.run(["nft", "flush set inet pyproxy e; delete set inet pyproxy endpoints2"])
    foreign = monitor.wait()
    assert foreign is not None
    assert foreign.sets == frozenset({"endpoints2"})
    monitor.end()
    monitor.close()
