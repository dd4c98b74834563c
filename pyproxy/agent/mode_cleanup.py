"""Removal of our own objects of the modes that do not serve.

After a change of the mode, the rules of both modes serve the same Services for a moment. The old
ones are removed right after the first commit, because nothing updates them any more, and they would
send connections to endpoints that are gone.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pyproxy.dataplane.interface import Dataplane
from pyproxy.dataplane.modes import MODES
from pyproxy.errors import KernelError, PyproxyError, UsageError


class Done(msgspec.Struct, frozen=True):
    """A line for each kind of object removed, and the errors that kept others."""

    removed: tuple[str, ...]
    failed: tuple[PyproxyError, ...]


def remove(serving: Dataplane[Any] | None) -> Done:
    """Remove our objects that do not serve; an error in one mode does not keep another's.

    `serving` is None if no dataplane serves. Idempotent; blocks.
    """
    removed: list[str] = []
    failed: list[PyproxyError] = []
    for mode in MODES.values():
        # The mode that serves can have leftovers too: rules in the other flavour of iptables.
        serves = serving is not None and serving.name == mode.name
        try:
            # An error leaves the lines from before it in the list.
            for line in mode.remove_leftovers(serving if serves else None):
                removed.append(line)  # noqa: PERF402
        except (KernelError, UsageError) as error:
            failed.append(error)
    return Done(tuple(removed), tuple(failed))
