"""Lists: whole or in pages, of now or of an earlier version."""

from __future__ import annotations

import base64
import binascii
import bisect

import msgspec

from pyproxy_lab.apiserver import status
from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.selectors import Selector
from pyproxy_lab.apiserver.store import Store, Stored, Table

_TOO_OLD = (
    "The provided continue parameter is too old to display a consistent list result. You can "
    "start a new list without the continue parameter, or use the continue token in this response "
    "to retrieve the remainder of the results. Continuing with the provided token results in an "
    "inconsistent list - objects that were created, modified, or deleted between the time the "
    "first chunk was returned and now may show up in the list."
)


class ListOptions(msgspec.Struct, frozen=True):
    """The options of a list request; `limit` is 0 if there is none."""

    prefix: str
    selector: Selector
    limit: int = 0
    token: str = ""
    version: str = ""
    match: str = ""


class Position(msgspec.Struct, frozen=True):
    """The content of a continue token: the list's version, and the path that comes next."""

    v: str
    rv: int
    start: str


class Page(msgspec.Struct, frozen=True):
    """A list, or a part of one, with its metadata."""

    objects: list[Stored]
    meta: Object


def page(store: Store, table: Table, options: ListOptions) -> Page:
    """Make a list. Raises ApiError: 400, 410, 504."""
    if options.token:
        position = decode_token(options.token)
        if options.version not in {"", "0"}:
            raise status.bad_request(
                "specifying resource version is not allowed when using continue"
            )
        revision, start = position.rv, position.start
        if revision < table.listable_from:
            raise status.expired(_TOO_OLD)
        if revision > store.revision:
            raise status.too_large_version(revision, store.revision)
    else:
        revision, start = _revision(store, table, options), ""
    if revision == store.revision:
        found = table.current(options.prefix)
    else:
        found = table.as_of(options.prefix, revision)
    if start:
        first = bisect.bisect_left(found, start, key=lambda stored: stored.path)
        found = found[first:]
    chosen = found
    if not options.selector.everything:
        chosen = [stored for stored in found if options.selector.matches(stored)]
    meta: Object = {"resourceVersion": str(revision)}
    # A list from the watch cache (version 0) is whole, whatever its limit.
    if options.limit and len(chosen) > options.limit and options.version != "0":
        left = len(chosen) - options.limit
        chosen = chosen[: options.limit]
        # The next page starts right after the last path: its successor ends in a zero byte.
        meta["continue"] = encode_token(revision, chosen[-1].path + "\0")
        if options.selector.everything:
            meta["remainingItemCount"] = left
    return Page(chosen, meta)


def encode_token(revision: int, start: str) -> str:
    """Make a continue token, in a real server's form."""
    raw = msgspec.json.encode({"v": "meta.k8s.io/v1", "rv": revision, "start": start})
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def decode_token(token: str) -> Position:
    """Read a continue token. Raises ApiError (400)."""
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        return msgspec.json.decode(raw, type=Position)
    except (binascii.Error, ValueError) as error:
        raise status.bad_request(f"continue key is not valid: {error}") from error


def parse_version(text: str) -> int:
    """Read a resourceVersion. Raises ApiError (400)."""
    if text.isascii() and text.isdigit():
        return int(text)
    raise status.bad_request(f'Invalid value: "{text}": resourceVersion is not a number')


def _revision(store: Store, table: Table, options: ListOptions) -> int:
    asked = parse_version(options.version) if options.version else 0
    if options.match and options.match not in {"Exact", "NotOlderThan"}:
        raise status.bad_request(f'resourceVersionMatch: Unsupported value: "{options.match}"')
    if options.match and not options.version:
        raise status.bad_request(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless "
            "resourceVersion is provided"
        )
    exact = options.match == "Exact" or (options.limit and not options.match and asked)
    store.check_listable(table, asked if exact else max(asked, table.listable_from))
    return asked if exact else store.revision
