import errno
import socket
from collections.abc import Iterable

import pytest

from pyproxy.config import ListenAddress
from pyproxy.health import sockets
from pyproxy.health.sockets import Sockets, bind, bind_unspecified
from pyproxy.model.address import Address, Family, parse_address
from tests.waiting import PATIENCE

ANYWHERE, LOOPBACK = parse_address("0.0.0.0"), parse_address("127.0.0.1")
QUEUES = 4


def port_of(found: Sockets) -> int:
    port: int = found.public[0].getsockname()[1]
    return port


def close(found: Iterable[socket.socket | None]) -> None:
    for each in found:
        if each is not None:
            each.close()


@pytest.mark.parametrize("address", [ANYWHERE, LOOPBACK])
def test_a_port_with_queues_is_taken_for_another_agent(address: Address) -> None:
    first = bind(ListenAddress(LOOPBACK, 0), QUEUES, own=True)
    try:
        assert len(first.public) == QUEUES
        assert first.own is not None
        with pytest.raises(OSError, match="in use"):
            bind(ListenAddress(address, port_of(first)), QUEUES, own=True)
        with pytest.raises(OSError, match="in use"):
            bind_unspecified([Family.IPV4], port_of(first), QUEUES)
    finally:
        close((*first.public, first.own))


def test_a_closed_port_is_free_with_all_its_queues() -> None:
    first = bind(ListenAddress(LOOPBACK, 0), QUEUES, own=True)
    port = port_of(first)
    close((*first.public, first.own))
    again = bind(ListenAddress(LOOPBACK, port), QUEUES)
    assert port_of(again) == port
    close(again.public)


def test_a_kernel_without_the_filter_has_one_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(sock: socket.socket, queues: int, *, own: bool) -> None:
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")

    monkeypatch.setattr(sockets, "select_queues", refuse)
    found = bind(ListenAddress(LOOPBACK, 0), QUEUES, own=True)
    (only,) = found.public
    with only:
        assert found.own is None
        for _ in range(20):
            socket.create_connection(("127.0.0.1", port_of(found)), timeout=PATIENCE).close()
            only.accept()[0].close()
