"""Probes of real sockets: each kind of answer, over IPv4 and IPv6."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from functools import partial

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.commands.trace import COMMAND
from pyproxy.commands.trace_arguments import destination_of
from pyproxy.config.command_line import Parser
from pyproxy.hostnet.packet import FirstPacket, Origin, PacketPath, ServicePaths
from pyproxy.hostnet.path_facts import PathFacts
from pyproxy.hostnet.probes import MAX_PROBES, Outcome, Probe, ProbeFacts, probe
from pyproxy.inspect.explain.path_probes import probes
from pyproxy.inspect.explain.step import Result
from pyproxy.model.address import Address, Port, Protocol, address_text, parse_address
from tests.builders import pod, slice_of, web
from tests.inspect.facts import agent_facts, facts
from tests.namespaces import empty_namespace

HOSTS = ("192.0.2.1", "2001:db8::1")
NO_WAY = ("192.0.2.77", "2001:db8::77")
TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP
OPEN, CLOSED, RESET, PROHIBITED, DROPPED, REJECTED, NOT_SENT = range(8001, 8008)
EXPECTED = {
    (TCP, OPEN): Outcome.ANSWERED,
    (TCP, CLOSED): Outcome.REFUSED,
    (TCP, RESET): Outcome.REFUSED,
    # The default of a rule with REJECT: a host without a listener would send a reset.
    (TCP, REJECTED): Outcome.FILTERED,
    (TCP, PROHIBITED): Outcome.FILTERED,
    (TCP, DROPPED): Outcome.SILENT,
    (UDP, OPEN): Outcome.ANSWERED,
    (UDP, CLOSED): Outcome.REFUSED,
    (UDP, PROHIBITED): Outcome.FILTERED,
    (UDP, DROPPED): Outcome.SILENT,
    (UDP, NOT_SENT): Outcome.FILTERED,
}
RULES = f"""
table inet foreign {{
    chain input {{
        type filter hook input priority 0
        tcp dport {RESET} reject with tcp reset
        th dport {PROHIBITED} reject with icmpx admin-prohibited
        th dport {REJECTED} reject
        th dport {DROPPED} drop
    }}
    chain output {{
        type filter hook output priority 0
        th dport {NOT_SENT} drop
    }}
}}
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    with empty_namespace("probes") as made:
        made.ip(["link set lo up", *(f"addr add {address} dev lo" for address in HOSTS)])
        made.ip([f"route add unreachable {address}" for address in NO_WAY])
        made.run(["nft", RULES])
        with contextlib.ExitStack() as stack:
            for address in HOSTS:
                stack.enter_context(made.call(partial(_listening, address)))
                stack.enter_context(_echo(made, address))
            yield made


def _listening(address: str) -> socket.socket:
    return socket.create_server(
        (address, OPEN), family=socket.AF_INET6 if ":" in address else socket.AF_INET
    )


@contextlib.contextmanager
def _echo(host: Namespace, address: str) -> Iterator[None]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = host.call(partial(socket.socket, family, socket.SOCK_DGRAM))
    sock.bind((address, OPEN))

    def run() -> None:
        while (peer := sock.recvfrom(16)[1]) is not None:
            sock.sendto(b"", peer)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        # It wakes the thread, although the kernel says that nothing is connected.
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        thread.join()
        sock.close()


def packet(protocol: Protocol, address: str, port: int) -> FirstPacket:
    return FirstPacket(protocol, None, parse_address(address), Port(port))


def paths(*endpoints: FirstPacket, frontend: FirstPacket | None = None) -> ServicePaths:
    return ServicePaths(
        tuple(PacketPath(Origin.NODE, frontend or each, each) for each in endpoints)
    )


def probed(host: Namespace, found: ServicePaths) -> ProbeFacts:
    return host.call(partial(probe, found))


@pytest.mark.packets
@pytest.mark.parametrize("address", HOSTS)
def test_each_kind_of_answer_has_its_outcome(host: Namespace, address: str) -> None:
    found = probed(host, paths(*(packet(protocol, address, port) for protocol, port in EXPECTED)))
    outcomes = [each.outcome for each in found.endpoints]
    assert dict(zip(EXPECTED, outcomes, strict=True)) == EXPECTED


@pytest.mark.packets
def test_a_route_that_refuses_is_no_way(host: Namespace) -> None:
    found = probed(host, paths(*(packet(TCP, address, OPEN) for address in NO_WAY)))
    assert {each.outcome for each in found.endpoints} == {Outcome.UNREACHABLE}


@pytest.mark.packets
def test_the_sender_of_an_icmp_error_is_known(host: Namespace) -> None:
    found = probed(host, paths(*(packet(TCP, address, PROHIBITED) for address in HOSTS)))
    assert [address_text(each.by or Address(b"")) for each in found.endpoints] == list(HOSTS)


@pytest.mark.packets
def test_the_number_of_probes_is_bounded(host: Namespace) -> None:
    many = [packet(TCP, HOSTS[0], 20_000 + number) for number in range(3 * MAX_PROBES)]
    found = probed(host, paths(*many))
    assert len(found.endpoints) + len(found.frontends) == MAX_PROBES
    assert found.left_out == 6 * MAX_PROBES - MAX_PROBES


def one(outcome: Outcome, protocol: Protocol = TCP, error: str = "") -> Probe:
    target = packet(protocol, "10.244.2.11", 8080).addressed_to
    return Probe(target, outcome, error=error)


STEPS = {
    "all answer": (ProbeFacts((one(Outcome.ANSWERED),)), Result.OK, "1 endpoint and 0 frontends"),
    "refused": (
        ProbeFacts((one(Outcome.REFUSED),), (one(Outcome.REFUSED),)),
        Result.FAILED,
        "no process listens at 10.244.2.11:8080: the connection is reset",
    ),
    "no way": (
        ProbeFacts((one(Outcome.UNREACHABLE, error="EHOSTUNREACH"),)),
        Result.FAILED,
        "there is no way from this node to 10.244.2.11:8080: error (EHOSTUNREACH)",
    ),
    "filtered": (
        ProbeFacts((one(Outcome.FILTERED, error="EACCES"),)),
        Result.FAILED,
        "a firewall rejects connections from this node to 10.244.2.11:8080",
    ),
    "silent": (
        ProbeFacts((one(Outcome.SILENT),)),
        Result.FAILED,
        "10.244.2.11:8080 did not respond within 2.5 s",
    ),
    "silent over UDP": (
        ProbeFacts((one(Outcome.SILENT, UDP),)),
        Result.UNDECIDED,
        "10.244.2.11:8080 did not respond to an empty UDP datagram, and need not",
    ),
    "no SCTP here": (
        ProbeFacts((one(Outcome.UNKNOWN, SCTP, error="EPROTONOSUPPORT"),)),
        Result.UNDECIDED,
        "this node cannot probe 10.244.2.11:8080 over SCTP: EPROTONOSUPPORT",
    ),
    "through the Service": (
        ProbeFacts((one(Outcome.ANSWERED),), (one(Outcome.SILENT),)),
        Result.FAILED,
        "all endpoints respond, but connections from this node to 10.244.2.11:8080 fail",
    ),
}


@pytest.mark.parametrize("case", STEPS)
def test_the_step_states_what_the_probes_found(case: str) -> None:
    part, result, message = STEPS[case]
    step = probes(facts(agent_facts(web(), [slice_of(pod("a1"))]), PathFacts(probes=part)))
    assert step.result is result
    assert message in step.message
    assert bool(step.fix) is (result is Result.FAILED)


def test_the_fix_of_a_frontend_is_a_command_that_runs() -> None:
    frontend = one(Outcome.SILENT, TCP)
    part = ProbeFacts((one(Outcome.ANSWERED),), (frontend,))
    step = probes(facts(agent_facts(web(), [slice_of(pod("a1"))]), PathFacts(probes=part)))
    words = step.fix.removeprefix("run pyproxy trace ").partition(" to see ")[0].split()
    parser = Parser("trace")
    COMMAND.declare(parser, "")
    assert destination_of(parser.parse_args(words).to) == frontend.target
