"""Changes as they are programmed."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from pyproxy.inspect.query import Stream
from pyproxy.inspect.snapshot import AgentView, Change


class Of(msgspec.Struct, frozen=True):
    """Changes to the Services of one namespace, or to all where it is empty."""

    namespace: str = ""


def _route(witness: AgentView, of: Of) -> Iterator[Change | None]:
    with witness.follow() as changes:
        for change in changes:
            if change is None or change.service.startswith(f"{of.namespace}/" * bool(of.namespace)):
                yield change


WATCH = Stream("/watch", Of, Change, _route)
