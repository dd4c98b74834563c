"""The rules of other programs on this node."""

from __future__ import annotations

import msgspec

from pyproxy.hostnet.not_read import NotRead
from pyproxy.hostnet.packet import ServicePaths


class FirewallFacts(msgspec.Struct, frozen=True):
    """The base chains of other programs."""


def read_firewalls(paths: ServicePaths) -> FirewallFacts | NotRead:  # noqa: ARG001
    """Read the rules that the packets of paths would meet. Raises KernelError."""
    return NotRead("this version does not read other firewalls")
