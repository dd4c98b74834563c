"""List and watch one kind of object, as client-go's Reflector does.

The state is one resourceVersion. With a version, a watch continues from it. Without one, the
objects are listed: by a watch with sendInitialEvents, or in pages if the server does not support
that. A watch that ends continues from its last version without a new list, except after a 410.

Facts: the Kubernetes API concepts on watches, bookmarks, streaming lists, and chunked lists.
kube-apiserver sends bookmarks every 60 to 75 seconds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from random import Random

import msgspec
from msgspec import Raw
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, ReadTimeoutError

from pyproxy.errors import Problem, SourceError
from pyproxy.model.events import Delete, Event, InvalidObject, Synced, Upsert
from pyproxy.model.objects import Kind, ObjectName
from pyproxy.source import stream, wire
from pyproxy.source.client import ApiStatusError, Client
from pyproxy.source.decode import NotProxied, decode_object
from pyproxy.source.retry import ApiBackoff, Clock, OutageLog
from pyproxy.source.stream import ConnectionLostError, GoneError, MalformedResponseError

log = logging.getLogger(__name__)

PAGE_SIZE = 500
"""Objects per page of a list, as in kubectl and client-go."""

WATCH_SECONDS = (300.0, 600.0)
"""The range of timeoutSeconds, drawn for each watch so that nodes reconnect at different times."""

LISTING_SILENCE = 10.0
"""Seconds without a byte after which a streaming list is abandoned."""

STREAMS_TRIED = 2
"""Streaming lists that may stay incomplete before pages are used."""

SHORTEST_WATCH = 1.0
"""Seconds; after a shorter watch without an event, the next one waits for the rest of this time."""

# 504 is "Too large resource version": the server's cache has not reached this version.
_WRONG_VERSION = frozenset({400, 404, 422, 504})
"""Statuses after which the same request might fail forever, so that a new list is needed."""

_READ_SIZE = 1 << 16


class Resource(msgspec.Struct, frozen=True):
    """The API path of one kind of object, and the selector of its lists and watches.

    With `only`, objects of any other name are ignored.
    """

    kind: Kind
    path: str
    list_kind: str
    selector: dict[str, str]
    only: ObjectName | None = None


class ReflectorContext(msgspec.Struct, frozen=True):
    """The parts that all reflectors of a source share.

    `silence` is how many seconds a watch may stay without a byte. `emit` is called from the thread
    of each reflector.
    """

    client: Client
    emit: Callable[[Event], None]
    clock: Clock
    random: Random
    silence: float
    stopping: threading.Event
    outages: OutageLog


class Reflector:
    """Lists and watches one kind; `run` is the body of its thread.

    `last_read` is the time of the last bytes of an event or bookmark, on the source's clock.
    """

    def __init__(self, resource: Resource, context: ReflectorContext) -> None:
        self.resource = resource
        self.last_read: float | None = None
        self._context = context
        self._backoff = ApiBackoff(context.random)
        self._version = ""  # empty: list first
        # How to list: as a stream or in pages, from the server's cache or from its storage.
        self._streaming = True
        self._incomplete_streams = 0
        self._paged = True
        self._from_cache = True
        # Whether the last watch failed after its head, so that a good head proves nothing.
        self._suspect = False
        self._lost_connections = 0
        self._invalid: set[str] = set()

    def run(self) -> None:
        """List and watch until the source stops."""
        stopping = self._context.stopping
        while not stopping.is_set():
            try:
                if self._version or self._streaming:
                    self._watch()
                else:
                    self._list_pages()
            except SourceError as error:
                # `stop` breaks requests in progress, which is no outage.
                if not stopping.is_set():
                    self._handle_error(error)
                    self._context.clock.wait(stopping, self._backoff.next(error))
            except Exception:
                # A fault in pyproxy: Worker logs it and calls `run` again. A change may be lost.
                self._version = ""
                raise

    def _watch(self) -> None:
        """Watch from the last version on; without a version, list by a watch first."""
        context = self._context
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(round(context.random.uniform(*WATCH_SECONDS))),
        }
        began, last_read = context.clock.now(), self.last_read
        if self._version:
            response = self._get(query | {"resourceVersion": self._version}, context.silence)
            if not self._suspect:
                context.outages.succeeded(self.resource.kind)
            with closing(response):
                for line in self._lines(response):
                    self._apply(stream.event(line))
        else:
            # KEP-3157: without a resourceVersion the list is as new as the storage is now. The API
            # requires resourceVersionMatch together with sendInitialEvents.
            query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
            silence = min(context.silence, LISTING_SILENCE)
            with closing(self._get(query, silence)) as response:
                self._list_stream(self._lines(response))
        lasted = context.clock.now() - began
        if lasted >= SHORTEST_WATCH:
            self._backoff.reset()
        # A server or HTTP proxy that ends each watch at once would cause a loop of requests.
        elif self.last_read == last_read:
            context.clock.wait(context.stopping, SHORTEST_WATCH - lasted)

    def _list_stream(self, lines: Iterator[memoryview]) -> None:
        """Read a streaming list up to its closing bookmark, then the changes that follow it."""
        # Counted first, because an incomplete list leaves this method by an exception.
        self._incomplete_streams += 1
        if self._incomplete_streams >= STREAMS_TRIED:
            self._streaming = False  # until this list is complete
        names: set[ObjectName] = set()
        self._invalid.clear()
        for line in lines:
            event = stream.event(line)
            if event.type == "BOOKMARK":
                meta = stream.bookmark(event.object)
                # A server that ignores sendInitialEvents sends objects and bookmarks too, but never
                # marks the end of the list.
                if meta.annotations is None or meta.annotations.initial_events_end != "true":
                    self._streaming = False
                    raise ConnectionLostError("a bookmark within a streaming list: using pages")
                self._streaming, self._incomplete_streams = True, 0
                self._list_complete(names, meta.resource_version)
                break
            self._apply(event, names)
        else:
            raise ConnectionLostError("a streaming list ended before its closing bookmark")
        # The same response goes on as the watch, without a second request.
        for line in lines:
            self._apply(stream.event(line))

    def _list_pages(self) -> None:
        """Read all objects in pages.

        resourceVersion=0 lets the server respond from its cache, possibly with all objects in one
        page. If a continue token expires, paging is too slow for the server's history, so the next
        list is requested without pages.
        """
        names: set[ObjectName] = set()
        self._invalid.clear()
        limit = {"limit": str(PAGE_SIZE)} if self._paged else {}
        query = limit | ({"resourceVersion": "0"} if self._from_cache else {})
        while True:
            try:
                page = self._read_page(query)
            except GoneError:
                self._paged = "continue" not in query
                raise
            for raw in page.items or ():
                self._upsert(raw, names)
            if not page.metadata.continue_:
                break
            # The token contains the version of the first page, so all pages are of one version.
            query = limit | {"continue": page.metadata.continue_}
        self._paged = True
        self._list_complete(names, page.metadata.resource_version)

    def _read_page(self, query: dict[str, str]) -> wire.ObjectList:
        with closing(self._get(query, self._context.silence)) as response:
            try:
                data = response.read()
            except (HTTPError, OSError) as error:
                raise ConnectionLostError(f"connection lost in a list: {error}") from error
        self.last_read = self._context.clock.now()
        return stream.object_list(data, self.resource.list_kind)

    def _list_complete(self, names: set[ObjectName], version: str | None) -> None:
        """Emit Synced, and store the version that the next watch starts from."""
        if not version:
            raise MalformedResponseError(f"{self.resource.path}: a list without resourceVersion")
        invalid = frozenset(self._invalid)
        self._context.emit(Synced(self.resource.kind, frozenset(names), invalid))
        self._version, self._from_cache = version, True
        self._note_success()

    def _apply(self, event: wire.WatchEvent, listing: set[ObjectName] | None = None) -> None:
        """Emit one change; outside a list, store its version.

        `listing` collects the names of a list in progress.
        """
        # KEP-956: without bookmarks the version of a kind that rarely changes would become too old,
        # and a reconnect would need a new list.
        if event.type == "BOOKMARK":
            self._advance(stream.bookmark(event.object).resource_version or "")
        # An object that no longer matches the selector arrives as DELETED, one that now matches as
        # ADDED.
        elif event.type == "DELETED":
            self._delete(event.object, listing)
        elif event.type in {"ADDED", "MODIFIED"}:
            self._upsert(event.object, listing)
        else:
            log.warning("%s: watch event of unknown type %r", self.resource.path, event.type)

    def _upsert(self, raw: Raw, listing: set[ObjectName] | None) -> None:
        """Emit the present state of one object, which is a Delete if it is not proxied."""
        kind, emit = self.resource.kind, self._context.emit
        decoded = decode_object(kind, raw)
        # The versions of the objects in a list are in no order.
        if listing is None:
            self._advance(decoded.version)
        name, value = decoded.name, decoded.value
        if name is not None and not self._selects(name):
            return
        if isinstance(value, Problem):
            # The previous version no longer exists, so it must not stay programmed.
            self._emit_delete(name, listing)
            emit(InvalidObject(value))
            if listing is not None:
                self._invalid.add(value.name)
        elif isinstance(value, NotProxied):
            log.debug("%s %s is not proxied: %s", kind.value, name, value.reason)
            self._emit_delete(name, listing)
        else:
            emit(Upsert(value, self.last_read or 0.0))
            if listing is not None and name is not None:
                listing.add(name)

    def _delete(self, raw: Raw, listing: set[ObjectName] | None) -> None:
        """Emit the deletion of one object.

        kube-apiserver sends the version of the deletion. Other servers may send the last version of
        the object, which is not a step back in history.
        """
        decoded = decode_object(self.resource.kind, raw)
        if listing is None and not _older(decoded.version, self._version):
            self._advance(decoded.version)
        if decoded.name is None and isinstance(decoded.value, Problem):
            self._context.emit(InvalidObject(decoded.value))
        self._emit_delete(decoded.name, listing)

    def _emit_delete(self, name: ObjectName | None, listing: set[ObjectName] | None) -> None:
        if name is not None and self._selects(name):
            self._context.emit(Delete(self.resource.kind, name, self.last_read or 0.0))
            if listing is not None:
                listing.discard(name)

    def _selects(self, name: ObjectName) -> bool:
        return self.resource.only is None or name == self.resource.only

    def _advance(self, version: str) -> None:
        """Store a version.

        Raises GoneError if it is older than the last one. Versions of one kind only grow, so an
        older one means another history, for example because etcd was restored from a backup. A
        watch would then stay silent until that history has caught up.
        """
        if _older(version, self._version):
            raise GoneError(f"the server went from version {self._version} back to {version}")
        self._version = version or self._version
        self._backoff.reset()
        self._note_success()

    def _note_success(self) -> None:
        """Note that the server works.

        This does not reset the backoff: only a watch with an event does. Otherwise a server whose
        history is shorter than the duration of a list would be asked for one list after another.
        """
        self._lost_connections = 0
        self._suspect = False
        self._context.outages.succeeded(self.resource.kind)

    def _handle_error(self, error: SourceError) -> None:
        """Choose the next request, and log the error unless it is a normal one."""
        kind = self.resource.kind
        if isinstance(error, GoneError):
            log.info("%s: listing again: %s", kind.value, error)
            # The server's cache may be older than the lost version: ask for the newest state.
            self._version, self._from_cache = "", False
            return
        if isinstance(error, ConnectionLostError):
            self._lost_connections += 1
            if self._lost_connections < 2:  # a server that restarts closes its connections once
                log.debug("%s: %s", kind.value, error)
                return
        status = error.status if isinstance(error, ApiStatusError) else 0
        # The validation of a server without the feature WatchList rejects sendInitialEvents.
        if status in {400, 422} and self._streaming and not self._version:
            log.info("%s: the server has no streaming lists, using pages", kind.value)
            self._streaming = False
            return
        if isinstance(error, MalformedResponseError) or status in _WRONG_VERSION:
            self._version, self._from_cache = "", False
        self._suspect = isinstance(error, MalformedResponseError | ConnectionLostError)
        self._context.outages.failed(kind, error)

    def _get(self, query: dict[str, str], silence: float) -> BaseHTTPResponse:
        """Request objects of this kind.

        Raises GoneError, MalformedResponseError, and the errors of Client.get.
        """
        client, resource = self._context.client, self.resource
        try:
            response = client.get(resource.path, resource.selector | query, silence)
        except ApiStatusError as error:
            if error.status == 410:
                raise GoneError(str(error)) from error
            raise
        content_type = response.headers.get("Content-Type", "")
        # An HTTP proxy on the way may respond 200 with a page of HTML.
        if "json" not in content_type:
            response.close()
            message = f"{client.host}{resource.path}: response of type {content_type!r}, not JSON"
            raise MalformedResponseError(message)
        return response

    def _lines(self, response: BaseHTTPResponse) -> Iterator[memoryview]:
        """Yield the lines of a watch as they arrive, until the watch ends or falls silent.

        Silence ends a watch because a half-open connection looks the same, even when a middlebox
        acknowledges for a dead server. A restart from the last version is one request that the
        server serves from its cache.
        Raises ConnectionLostError if the connection breaks or ends within a line.
        """
        return stream.lines(self._chunks(response))

    def _chunks(self, response: BaseHTTPResponse) -> Iterator[bytes]:
        while True:
            try:
                # read1 returns the bytes that have arrived; read would wait for all of _READ_SIZE.
                chunk = response.read1(_READ_SIZE)
            except ReadTimeoutError:
                log.debug("%s: watch is silent, restarting it", self.resource.path)
                return
            except (HTTPError, OSError) as error:
                raise ConnectionLostError(f"connection lost in a watch: {error}") from error
            if not chunk:
                return
            # Taken before decoding, so that the latency of a change includes it.
            self.last_read = self._context.clock.now()
            yield chunk


def _older(version: str, than: str) -> bool:
    """Compare two resourceVersions as numbers; versions that are not numbers are never older."""
    numbers = version.isdecimal() and than.isdecimal()
    # The longer of two numbers without leading zeros is the larger one.
    return numbers and (len(version), version) < (len(than), than)
