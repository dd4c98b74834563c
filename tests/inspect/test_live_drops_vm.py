"""Drops of live packets, with the kernel's reasons, in the machine's initial network namespace.

The drop monitor exists in that namespace alone, so this node is the virtual machine itself. Linux
before 6.0 gives no reasons, so that functions of the kernel are compared there.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from pyproxy_lab.namespace import Namespace, execute

from pyproxy.dataplane.nftables.packet_trace import LiveTrace, PacketTrace
from pyproxy.errors import KernelError
from pyproxy.model.address import parse_address
from pyproxy.netlink import generic
from pyproxy.netlink.attributes import attribute
from pyproxy.netlink.drop_monitor import DropMonitor
from pyproxy.netlink.requests import Requests
from pyproxy.netlink.sockets import NETLINK_GENERIC
from pyproxy.netlink.tracing import Match
from tests.namespaces import empty_namespace
from tests.waiting import until

pytestmark = [pytest.mark.vm, pytest.mark.packets]

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
TCP = 6
FRONTEND, SILENT, UNROUTED = "10.96.0.1", "10.96.0.2", "10.96.0.3"
CLIENT, POD, NOBODY, ELSEWHERE = "10.1.0.2", "10.2.0.2", "10.2.0.77", "10.3.0.5"
FIREWALL = """
table inet foreign {
    chain forward { type filter hook forward priority 0; ip daddr 10.2.0.2 tcp dport 82 drop; }
    chain raw { type filter hook prerouting priority -300; tcp dport 86 drop; }
}
table ip proxy {
    chain prerouting {
        type nat hook prerouting priority -100;
        ip daddr 10.96.0.1 dnat to 10.2.0.2
        ip daddr 10.96.0.2 dnat to 10.2.0.77
        ip daddr 10.96.0.3 dnat to 10.9.0.2
    }
    chain postrouting {
        type nat hook postrouting priority 100;
        ip daddr 10.2.0.77 masquerade
    }
}
"""
HAS_REASONS = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 0)
FUNCTIONS = {
    "NO_SOCKET": ("tcp_v4_rcv",),
    "NETFILTER_DROP": ("nf_hook_slow", "nft_do_chain"),
    "IP_RPFILTER": ("ip_rcv_finish_core",),
    "IP_INNOROUTES": ("ip_error",),
    "NEIGH_FAILED": ("neigh_invalidate",),
}


@pytest.fixture(scope="module")
def client() -> Iterator[Namespace]:
    """Make a client and a pod beside this node, with a foreign firewall and translations."""
    with empty_namespace("client") as client, empty_namespace("pod") as pod:
        for device, namespace, net in (("tocl", client, 1), ("topod", pod, 2)):
            execute(["ip", "link", "add", device, "type", "veth", "peer", "name", "eth0",
                     "netns", namespace.name])  # fmt: skip
            execute(["ip", "address", "add", f"10.{net}.0.1/24", "dev", device])
            execute(["ip", "link", "set", device, "up"])
            namespace.ip(
                (
                    f"address add 10.{net}.0.2/24 dev eth0",
                    "link set eth0 up",
                    "link set lo up",
                    f"route add default via 10.{net}.0.1",
                )
            )
        client.ip((f"address add {ELSEWHERE}/32 dev eth0",))
        execute(["ip", "route", "add", "10.3.0.0/24", "dev", "topod"])
        before = FORWARDING.read_text()
        execute(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.tocl.rp_filter=1"])
        execute(["nft", "-f", "-"], text=FIREWALL)
        yield client
        execute(["nft", "delete", "table", "inet", "foreign"])
        execute(["nft", "delete", "table", "ip", "proxy"])
        FORWARDING.write_text(before)


def connect(case: Case) -> None:
    """Try to connect once, whatever comes of it."""
    with socket.socket() as sock:
        sock.settimeout(0.5)
        sock.bind((case.source, 0))
        sock.connect_ex((case.target, case.port))


def first_drop(client: Namespace, case: Case) -> PacketTrace:
    """Connect once, and return the first packet of the trace that the kernel drops."""
    match = Match(parse_address(case.target), TCP, case.port)
    with closing(DropMonitor()) as monitor:
        monitor.start()
        with closing(LiveTrace(match, monitor)) as trace:
            client.call(partial(connect, case))
            return next(each for each in trace.packet_traces(60.0) if each and each.drops)


class Case(NamedTuple):
    target: str
    port: int
    reason: str
    ends: tuple[str, str]
    source: str = CLIENT
    traced: bool = True


@pytest.mark.parametrize(
    "case",
    [
        Case(FRONTEND, 81, "NO_SOCKET", (CLIENT, POD)),
        Case(FRONTEND, 82, "NETFILTER_DROP", (CLIENT, POD)),
        Case(FRONTEND, 86, "NETFILTER_DROP", (CLIENT, FRONTEND), traced=False),
        Case(FRONTEND, 81, "IP_RPFILTER", (ELSEWHERE, POD), ELSEWHERE),
        Case(UNROUTED, 80, "IP_INNOROUTES", (CLIENT, "10.9.0.2")),
        # Late, and masqueraded, so that conntrack alone knows whose packet it is.
        Case(SILENT, 80, "NEIGH_FAILED", ("10.2.0.1", NOBODY), traced=False),
    ],
    ids=lambda case: f"{case.reason}-{case.target}:{case.port}",
)
def test_the_reason_of_a_drop(client: Namespace, case: Case) -> None:
    packet = first_drop(client, case)
    assert packet.source.startswith(f"{case.source}:")
    assert (packet.destination, packet.traced) == (f"{case.target}:{case.port}", case.traced)
    drop = packet.drops[0]
    assert drop.source.startswith(f"{case.ends[0]}:")
    assert drop.destination == f"{case.ends[1]}:{case.port}"
    assert drop.function in FUNCTIONS[case.reason]
    assert drop.reason == (case.reason if HAS_REASONS else "")


class Commands:
    """Requests to the drop monitor, as another program sends them."""

    def __enter__(self) -> Commands:
        self._requests = Requests(NETLINK_GENERIC)
        replies = self._requests.get(generic.get_family("NET_DM"))
        self._family = generic.read_family_id(replies)
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.close()

    def send(self, number: int, attributes: bytes = b"") -> int:
        errors = self._requests.send([generic.command(self._family, number, 2, attributes)])
        return errors[0].errno if errors else 0


def is_on() -> bool:
    """Return whether the monitor is on: its alerts cannot be configured then."""
    with Commands() as commands:
        return commands.send(2, attribute(1, b"\1")) == errno.EBUSY


def test_the_monitor_has_one_user_who_is_named() -> None:
    with closing(DropMonitor()) as monitor:
        monitor.start()
        with pytest.raises(KernelError, match=rf"\(process {os.getpid()}\) uses the kernel's drop"):
            DropMonitor()
        assert is_on()
    assert not is_on()


def test_a_monitor_that_a_killed_process_left_on_is_taken_over() -> None:
    script = "import os; from pyproxy.netlink.drop_monitor import DropMonitor as D; D().start(); "
    subprocess.run([sys.executable, "-c", script + "os.kill(os.getpid(), 9)"], check=False)
    assert is_on()
    with closing(DropMonitor()) as monitor:
        monitor.start()
    assert not is_on()


def test_a_monitor_of_another_program_is_left_alone() -> None:
    with Commands() as commands:
        assert commands.send(3) == 0
        with pytest.raises(KernelError, match="another program has left the kernel's drop monitor"):
            DropMonitor()
        assert is_on()
        assert commands.send(4) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_monitor_is_off_after_any_signal(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "pyproxy", "trace", "--live", "--to", f"{FRONTEND}:80"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"waiting for packets" in process.stderr.readline()
        assert is_on()
        process.send_signal(number)
    until(lambda: not is_on(), "the monitor is off", 120)
