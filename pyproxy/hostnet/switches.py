"""The sysctls that decide whether the kernel forwards, accepts and tracks packets."""

from __future__ import annotations

import msgspec

from pyproxy.hostnet.not_read import NotRead
from pyproxy.hostnet.packet import ServicePaths


class SwitchFacts(msgspec.Struct, frozen=True):
    """The values of sysctls by name."""

    values: dict[str, int] = {}


def read_switches(paths: ServicePaths) -> SwitchFacts | NotRead:  # noqa: ARG001
    """Read the sysctls that apply to paths. Blocks for files of /proc. Raises OSError."""
    return NotRead("this version does not read sysctls")
