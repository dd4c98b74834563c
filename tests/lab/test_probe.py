"""Probes against a server on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from pyproxy_lab.probe import ENOUGH_DROPPED, probe

from pyproxy.model.address import Port, Protocol, parse_address
from pyproxy.model.destination import Destination

Serve = Callable[[Callable[[socket.socket], None]], Destination]


def until_closed(work: Callable[[socket.socket], None], listener: socket.socket) -> None:
    try:
        work(listener)
    except OSError:
        if listener.fileno() != -1:
            raise


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that lets a thread serve a new listening socket until it is closed."""
    with ExitStack() as stack:

        def start(work: Callable[[socket.socket], None]) -> Destination:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            threading.Thread(target=until_closed, args=(work, listener), daemon=True).start()
            port = Port(listener.getsockname()[1])
            return Destination(parse_address("127.0.0.1"), port, Protocol.TCP)

        yield start


def test_the_first_tries_are_made_at_once(serve: Serve) -> None:
    def respond_to_pairs(listener: socket.socket) -> None:
        while True:
            pair = [listener.accept()[0] for _ in range(2)]
            for each in pair:
                each.sendall(b"a1 10.0.0.1\n")
                each.close()

    target = serve(respond_to_pairs)
    outcome = probe(target, tries=2, at_once=2, timeout=20.0)
    assert (outcome.reached, outcome.dropped) == ({"a1": 2}, 0)


def test_a_server_that_is_silent_drops_no_more_than_enough(serve: Serve) -> None:
    target = serve(lambda listener: None)
    outcome = probe(target, tries=9, at_once=ENOUGH_DROPPED, timeout=0.1)
    assert (outcome.reached, outcome.dropped) == ({}, ENOUGH_DROPPED)
