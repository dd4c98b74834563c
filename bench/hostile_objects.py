"""Attacks by objects: what a tenant writes to the API, at first and then again and again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from pyproxy_lab.bench.shape import PORT, endpoint_slice, service

Object = dict[str, Any]

FIRST = 60_000
"""The number of the attackers' first Service; no other Service has one as high."""

NAMESPACE = "tenant"
"""The attackers' namespace: those who may write in another tenant's need no attack."""

_FIRST_POD = 4_000_000
_CONFLICTS = 500
_BALANCERS = 1_100
_FLAPPING = 20
_STORM = 100


class ObjectAttack(msgspec.Struct, frozen=True):
    """Objects that exist from the start on, and endless edits, `rate` a second."""

    made: Callable[[], Sequence[Object]]
    edits: Callable[[], Iterator[Object]]
    rate: float


def _of(number: int, **spec: Any) -> Object:
    obj = service(FIRST + number)
    obj["spec"] |= spec
    obj["metadata"]["namespace"] = NAMESPACE
    return obj


def _slice(number: int, *pods: int) -> Object:
    obj = endpoint_slice(FIRST + number, [_FIRST_POD + pod for pod in pods or (number,)])
    obj["metadata"]["namespace"] = NAMESPACE
    return obj


def _noted(obj: Object) -> Iterator[Object]:
    """Yield an object again and again, with another port's name each time."""
    for turn in itertools.count():
        first, *rest = obj["spec"]["ports"]
        yield {
            **obj,
            "spec": {**obj["spec"], "ports": [{**first, "name": f"p{turn % 2}"}, *rest]},
        }


def _foreign() -> Object:
    addresses = [f"2001:db8::{number:x}" for number in range(1, 30_001)]
    return _of(0, externalIPs=addresses)


def _giant(addresses: int = 264) -> Object:
    ports = [
        {"name": f"p{port}", "protocol": "TCP", "port": port, "targetPort": 8080}
        for port in range(1, 1_001)
    ]
    return _of(
        0, ports=ports, externalIPs=[f"198.18.{n // 250}.{n % 250 + 1}" for n in range(addresses)]
    )


def _giant_edits() -> Iterator[Object]:
    return itertools.cycle([_giant(263), _giant(264)])


def _giant_slice() -> Object:
    obj = _slice(0)
    obj["ports"] = [{"name": f"p{n}", "protocol": "TCP", "port": 8080} for n in range(1, 1_001)]
    return obj


def _balancers() -> list[Object]:
    made = []
    for number in range(_BALANCERS):
        port = {"name": "http", "protocol": "TCP", "port": PORT, "targetPort": 8080}
        made.append(
            _of(
                number,
                type="LoadBalancer",
                externalTrafficPolicy="Local",
                healthCheckNodePort=31_300 + number,
                ports=[{**port, "nodePort": 30_001 + number}],
            )
        )
        made.append(_slice(number))
    return made


def _balancer_edits() -> Iterator[Object]:
    for turn in itertools.count():
        number = turn % _BALANCERS
        yield _slice(number, 2_000 + number + turn % 2)


def _flapping() -> Iterator[Object]:
    for turn in itertools.count():
        number, even = turn % _FLAPPING, turn // _FLAPPING % 2
        yield _of(number, externalIPs=["198.18.0.1" if even else "127.0.0.1"])


def _conflicting(number: int, *addresses: str) -> Object:
    return _of(number, externalIPs=addresses)


def _conflicts() -> list[Object]:
    made = []
    for number in range(_CONFLICTS):
        made += [_conflicting(number, "198.18.0.1"), _slice(number)]
    return made


def _conflict_edits() -> Iterator[Object]:
    """By turns the first Services give the address up, and claim it again."""
    for turn in itertools.count():
        number, gives = turn // 2 % 10, turn % 2 == 0
        yield _conflicting(number, *(() if gives else ("198.18.0.1",)))


def _storm() -> Iterator[Object]:
    for turn in itertools.count():
        number = turn % _STORM
        yield _slice(number, 1_000 + number, 2_000 + turn % 50_000)


def _affinity() -> list[Object]:
    """Return a UDP Service with session affinity, and its slice."""
    port = {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 5353}
    made = _of(
        0,
        ports=[port],
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 10_800}},
    )
    endpoints = _slice(0)
    endpoints["ports"] = [{"name": "dns", "protocol": "UDP", "port": 5353}]
    return [made, endpoints]


def _none() -> Iterator[Object]:
    return iter(())


ATTACKS: Mapping[str, ObjectAttack] = {
    "foreign-family": ObjectAttack(lambda: [_foreign(), _slice(0)], lambda: _noted(_foreign()), 10),
    "giant-service": ObjectAttack(lambda: [_giant(), _giant_slice()], _giant_edits, 1),
    "local-load-balancers": ObjectAttack(_balancers, _balancer_edits, 20),
    "flapping": ObjectAttack(lambda: [_slice(n) for n in range(_FLAPPING)], _flapping, 100),
    "conflicts": ObjectAttack(_conflicts, _conflict_edits, 20),
    "event-storm": ObjectAttack(lambda: [_of(n) for n in range(_STORM)], _storm, 1_000),
    "affinity-fill": ObjectAttack(_affinity, _none, 1),
}
