"""The formats in which an API server sends objects, and their readers.

A server, or a proxy on the way, may not have the format that was asked for, so the Content-Type of
a response selects its reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple, Protocol

from pyproxy.source import stream, wire
from pyproxy.source.media_types import is_protobuf


class ListPage(Protocol):
    """A list, or a page of one, with undecoded items."""

    @property
    def metadata(self) -> wire.ListMeta:
        """The list's version, and the token of the next page."""

    @property
    def items(self) -> Iterable[wire.Encoded] | None:
        """The objects."""


class WatchEvent(Protocol):
    """An event of a watch, with an undecoded object."""

    @property
    def type(self) -> str:
        """ADDED, MODIFIED, DELETED or BOOKMARK."""

    @property
    def object(self) -> wire.Encoded:
        """The object."""


class Format(NamedTuple):
    """The readers of one format, which raise the errors that `stream` documents.

    `frames` splits the bytes of a watch, `event` decodes what it yields, `bookmark` the object of
    an event, and `object_list` a body.
    """

    frames: Callable[[Iterable[bytes]], Iterator[Any]]
    event: Callable[[Any], WatchEvent]
    bookmark: Callable[[Any], wire.Meta]
    object_list: Callable[[bytes, str], ListPage]


_JSON = Format(stream.lines, stream.event, stream.bookmark, stream.object_list)


@cache
def _protobuf() -> Format:
    # Only when the first such response arrives, because the import takes time and memory.
    from pyproxy.source import protobuf_stream  # noqa: PLC0415

    return Format(
        protobuf_stream.frames,
        protobuf_stream.event,
        protobuf_stream.bookmark,
        protobuf_stream.object_list,
    )


def import_first(accept: str) -> None:
    """Import the reader of the format that an Accept header names first. Idempotent."""
    if is_protobuf(accept.partition(",")[0]):
        _protobuf()


def format_of(content_type: str) -> Format | None:
    """Return the format of a response by its Content-Type, None for another one."""
    if "json" in content_type:
        return _JSON
    return _protobuf() if is_protobuf(content_type) else None
