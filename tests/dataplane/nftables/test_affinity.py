"""Which learned elements a change makes stale."""

from __future__ import annotations

import pytest

from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nft.schema import Rows
from pyproxy.dataplane.nftables.affinity import expectations, loosened, stale
from pyproxy.model.address import Backend, Family, Port, Protocol, backend, parse_address
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use

HOME = parse_address("10.96.0.1")
WEB, OTHER = ObjectName("shop", "web"), ObjectName("shop", "other")
KEY = frontend_key(HOME, Protocol.TCP, 80)


def end(number: int) -> Backend:
    return backend(parse_address(f"10.244.1.{number}"), Port(8080))


def web(
    *cluster: int, local: tuple[int, ...] = (), use: Use = Use.CLUSTER, timeout: int = 60
) -> ServiceRouting:
    port = PortRouting(
        "",
        Family.IPV4,
        Protocol.TCP,
        (Frontend(Scope.EXTERNAL_IP, HOME, Port(80), use),),
        tuple(map(end, cluster)),
        tuple(map(end, local)),
    )
    return ServiceRouting(WEB, (port,), (), timeout)


def learned(**clients: int) -> Rows:
    """Elements by client, a letter for the last byte of its address."""
    return {
        bytes((10, 9, 9, ord(client))) + KEY: end(number) + b"\0\0"
        for client, number in clients.items()
    }


@pytest.mark.parametrize(
    ("before", "after", "gone"),
    [
        (web(1, 2), web(1, 2), ""),
        (web(1, 2), web(1, 2, 3), ""),
        (web(1, 2), web(2), "a"),
        (web(1, 2), web(3), "ab"),
        (web(1, 2), web(use=Use.REJECT), "ab"),
        (web(1, 2), None, "ab"),
        (web(1, 2), web(1, 2, timeout=0), "ab"),
        (web(1, 2), web(1, 2, timeout=90), ""),
        (web(1, 2, timeout=0), web(2, timeout=0), ""),
        (web(1, 2, timeout=0), web(1, 2), ""),
        (web(1, 2), web(1, 2, local=(1, 2), use=Use.SPLIT), "ab"),
        (web(1, local=(2,), use=Use.SPLIT), web(1, local=(2,), use=Use.SPLIT), ""),
        (web(1, local=(2,), use=Use.SPLIT), web(2, local=(1,), use=Use.SPLIT), ""),
        (web(1, local=(2,), use=Use.SPLIT), web(1, use=Use.SPLIT), "b"),
        (web(local=(1, 2), use=Use.LOCAL), web(local=(1,), use=Use.LOCAL), "b"),
        (web(local=(1, 2), use=Use.LOCAL), web(use=Use.DROP), "ab"),
    ],
)
def test_a_change_lets_go_of_whom_it_concerns(
    before: ServiceRouting, after: ServiceRouting | None, gone: str
) -> None:
    held = learned(a=1, b=2)
    found = stale(held, Family.IPV4, loosened({WEB: before}, {WEB: after}), all_known=False)
    letters = "".join(chr(key[3]) for key in found.get("affinity4", {}))
    assert letters == gone
    assert found.keys() <= {"affinity4"}


def test_a_frontend_that_another_service_takes_over_keeps_whom_that_serves() -> None:
    taker = ServiceRouting(OTHER, web(2).ports, (), 60)
    allowed = loosened({WEB: web(1, 2)}, {WEB: None, OTHER: taker})
    found = stale(learned(a=1, b=2), Family.IPV4, allowed, all_known=False)
    assert list(found["affinity4"]) == list(learned(a=1))


def test_a_restart_lets_go_of_what_no_service_wants() -> None:
    held = learned(a=1, b=2)
    assert stale(held, Family.IPV4, {}, all_known=False) == {}
    assert stale(held, Family.IPV4, {}, all_known=True) == {"affinity4": held}
    only = expectations([web(1)])
    assert stale(held, Family.IPV4, only, all_known=True) == {"affinity4": learned(b=2)}
    assert stale(learned(a=1), Family.IPV4, only, all_known=True) == {}
