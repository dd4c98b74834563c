"""How a chain picks an endpoint: evenly, and through groups where there are many.

The kernel tries a chain's rules one after the other, so a chain of a thousand endpoints would cost
a thousand rules at worst. Beyond some, endpoints are divided into groups by a digest of their
address, each group weighed by its size: a new endpoint then changes its own group, and the weights.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence

from pyproxy.dataplane.iptables import names
from pyproxy.dataplane.iptables.rules import Jump, Rule, chance
from pyproxy.model.address import Backend

MANY = 32
"""Endpoints that one chain picks from; with more they are divided."""

_GROUP = 16
"""Endpoints that a group has on average, at most."""


def pick(
    chain: str, backends: Sequence[Backend], rule: Callable[[Backend, int], Rule]
) -> tuple[tuple[Rule, ...], dict[str, tuple[Rule, ...]]]:
    """Give the rules that pick among `backends` in `chain`, and the chains that they go to.

    `rule` writes the one that leads to a backend with some probability.
    """
    if len(backends) <= MANY:
        return tuple(_evenly(backends, rule)), {}
    groups: dict[int, list[Backend]] = {}
    count = 1 << (len(backends) // _GROUP).bit_length() - 1
    for backend in backends:
        groups.setdefault(zlib.crc32(backend) % count, []).append(backend)
    rules, chains = [], {}
    left = len(backends)
    for number, members in sorted(groups.items()):
        name = names.group(chain, number)
        rules.append(Rule(share=chance(len(members), left), target=Jump(name, returns=False)))
        chains[name] = tuple(_evenly(members, rule))
        left -= len(members)
    return tuple(rules), chains


def _evenly(backends: Sequence[Backend], rule: Callable[[Backend, int], Rule]) -> Iterator[Rule]:
    for index, backend in enumerate(backends):
        yield rule(backend, chance(1, len(backends) - index))
