"""The type of a flag."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from pyproxy.config import values
from pyproxy.config.modes import ProxyMode

T_co = TypeVar("T_co", covariant=True)


class Flag(msgspec.Struct, Generic[T_co], frozen=True):
    """One flag: the parser of its text, and its default as text.

    `fields` are the paths in a KubeProxyConfiguration with the same meaning, of which the first one
    given counts; empty for a flag without a field. A flag that `repeats` is a list that grows with
    each use; of other flags the last use counts, as in Go. It has an effect in `modes` only.
    `instead` names the flag that replaces a deprecated one, which the file of --config overrides.
    """

    name: str
    read: Callable[[str], T_co]
    default: str
    help: str
    fields: tuple[str, ...] = ()
    repeats: bool = False
    modes: frozenset[ProxyMode] = frozenset(ProxyMode)
    instead: str = ""

    @property
    def is_boolean(self) -> bool:
        """Whether the flag alone means true, so that the next argument is not its value."""
        return self.read in (values.boolean, values.version_request)
