"""Whole lists of the API server, page by page, for commands that read them once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

import msgspec
from urllib3.exceptions import HTTPError

from pyproxy.errors import SourceError
from pyproxy.source.body import LARGEST_PAGE
from pyproxy.source.client import RESPONSE_TIMEOUT, Client
from pyproxy.source.wire import ListMeta

_PAGE = 500

T = TypeVar("T", bound=msgspec.Struct)


class _Page(msgspec.Struct, frozen=True):
    metadata: ListMeta | None = None
    items: list[msgspec.Raw] | None = None


def list_objects(
    client: Client, path: str, kind: type[T], query: Mapping[str, str] | None = None
) -> Iterator[T]:
    """Yield all objects of a list, reduced to the fields of `kind`. Blocks.

    Raises SourceError.
    """
    token = ""
    while True:
        wanted = {**(query or {}), "limit": str(_PAGE)}
        page = read_list(client, path, {**wanted, "continue": token} if token else wanted, _Page)
        for item in page.items or ():
            yield _decoded(path, item, kind)
        token = (page.metadata.continue_ if page.metadata else None) or ""
        if not token:
            return


def read_list(
    client: Client,
    path: str,
    query: Mapping[str, str],
    kind: type[T],
    timeout: float = RESPONSE_TIMEOUT,
) -> T:
    """Return the response to one request for a list, or for a page of it. Blocks.

    Raises SourceError.
    """
    response = client.get(path, query, timeout, compressed=True)
    try:
        return msgspec.json.decode(client.read(response, LARGEST_PAGE), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"{path}: the response is not a list of such objects: {error}") from error
    except (HTTPError, OSError) as error:
        raise SourceError(f"{path}: connection lost in a list: {type(error).__name__}") from error
    finally:
        response.close()


def _decoded(path: str, item: msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(item, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"{path}: an object of the list is invalid: {error}") from error
