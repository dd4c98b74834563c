"""One kind of object, listed and watched for as long as the agent runs.

The state is one resourceVersion. While there is one, a watch goes on from it; where there is none
the objects are listed: as a watch that begins with all of them (sendInitialEvents), or in pages
from a server that does not have that. A watch that ends, for whatever reason but 410, goes on
from the last version without a new list.

Facts: the Kubernetes API concepts on watches, bookmarks, streaming lists, and chunked lists;
bookmarks come from kube-apiserver every 60 to 75 seconds.
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
from pyproxy.source.retry import Backoff, Clock, OutageLog
from pyproxy.source.stream import BrokenError, GarbledError, GoneError

log = logging.getLogger(__name__)

PAGE_SIZE = 500
"""Objects a page, as kubectl and client-go ask."""

WATCH_SECONDS = (300.0, 600.0)
"""How long a watch is asked to last; drawn anew each time, so that nodes drift apart."""

LISTING_SILENCE = 10.0
"""Seconds without a byte after which a streaming list is not going to end any more."""

STREAMS_TRIED = 2
"""Streaming lists that may remain unfinished before pages are asked for."""

SHORTEST_WATCH = 1.0
"""Seconds; a watch that ends sooner, and empty, is asked again only after this time."""

_NOT_THIS_VERSION = frozenset({400, 404, 422, 504})
_READ_SIZE = 1 << 16


class Resource(msgspec.Struct, frozen=True):
    """Where one kind of object is in the API, and which of them are asked for."""

    kind: Kind
    path: str
    list_kind: str
    selector: dict[str, str]
    only: ObjectName | None = None


class ReflectorContext(msgspec.Struct, frozen=True):
    """What all reflectors of a source share.

    `silence` is how many seconds a watch may stay without a byte. `emit` is called from each
    reflector's own thread.
    """

    client: Client
    emit: Callable[[Event], None]
    clock: Clock
    random: Random
    silence: float
    stopping: threading.Event
    outages: OutageLog


class Reflector:
    """Follows one kind; `run` is the body of its thread.

    `last_read` is when the last bytes of an event or bookmark were read, on the source's clock.
    """

    def __init__(self, resource: Resource, surroundings: ReflectorContext) -> None:
        self.resource = resource
        self.last_read: float | None = None
        self._around = surroundings
        self._backoff = Backoff(surroundings.random)
        self._version = ""
        self._streams = True
        self._unfinished = 0
        self._paged = True
        self._from_cache = True
        self._doubtful = False
        self._breaks = 0
        self._set_aside: set[str] = set()

    def run(self) -> None:
        """List and watch until the source stops."""
        stopping = self._around.stopping
        while not stopping.is_set():
            try:
                if self._version or self._streams:
                    self._watch()
                else:
                    self._list()
            except SourceError as error:
                if not stopping.is_set():
                    self._recover(error)
                    self._around.clock.wait(stopping, self._backoff.next(error))
            except Exception:
                # A mistake of ours, for whoever runs this thread. It may have lost a change.
                self._version = ""
                raise

    def _recover(self, error: SourceError) -> None:
        """Decide what the next attempt is, and whether anybody needs to know."""
        kind = self.resource.kind
        if isinstance(error, GoneError):
            log.info("%s: listing again: %s", kind.value, error)
            self._version, self._from_cache = "", False
            return
        if isinstance(error, BrokenError):
            self._breaks += 1
            if self._breaks < 2:  # once is how a server that restarts says goodbye
                log.debug("%s: %s", kind.value, error)
                return
        status = error.status if isinstance(error, ApiStatusError) else 0
        if status in {400, 422} and self._streams and not self._version:
            log.info("%s: no streaming lists on this server, pages are used", kind.value)
            self._streams = False
            return
        if isinstance(error, GarbledError) or status in _NOT_THIS_VERSION:
            # Asked from the same version, the server might say the same again for ever.
            self._version, self._from_cache = "", False
        self._doubtful = isinstance(error, GarbledError | BrokenError)
        self._around.outages.lost(kind, error)

    def _answered(self) -> None:
        """Note that the server does what it should.

        The backoff is not reset by that but by a watch that brings something: a server whose
        history is too short for the time that a list takes must not be asked for lists in a row.
        """
        self._breaks = 0
        self._doubtful = False
        self._around.outages.over(self.resource.kind)

    def _get(self, query: dict[str, str], silence: float) -> BaseHTTPResponse:
        """Ask for the objects of this kind. Raises GoneError, GarbledError, and as Client.get."""
        client, resource = self._around.client, self.resource
        try:
            response = client.get(resource.path, resource.selector | query, silence)
        except ApiStatusError as error:
            if error.status == 410:
                raise GoneError(str(error)) from error
            raise
        content_type = response.headers.get("Content-Type", "")
        if "json" not in content_type:
            response.close()
            raise GarbledError(f"{client.host}{resource.path}: an answer of type {content_type!r}")
        return response

    def _list(self) -> None:
        """Read all objects in pages, then say which there are.

        resourceVersion=0 lets the server answer from its memory, and then it may put all in one
        page. An expired continue token means that paging is too slow for this server's history,
        so the next list is asked for in one piece.
        """
        names: set[ObjectName] = set()
        self._set_aside.clear()
        limit = {"limit": str(PAGE_SIZE)} if self._paged else {}
        query = limit | ({"resourceVersion": "0"} if self._from_cache else {})
        while True:
            try:
                page = self._page(query)
            except GoneError:
                self._paged = "continue" not in query
                raise
            for raw in page.items or ():
                self._take(raw, names)
            if not page.metadata.continue_:
                break
            query = limit | {"continue": page.metadata.continue_}
        self._paged = True
        self._whole(names, page.metadata.resource_version)

    def _page(self, query: dict[str, str]) -> wire.ObjectList:
        with closing(self._get(query, self._around.silence)) as response:
            try:
                data = response.read()
            except (HTTPError, OSError) as error:
                raise BrokenError(f"a list broke off: {error}") from error
        self.last_read = self._around.clock.now()
        return stream.object_list(data, self.resource.list_kind)

    def _watch(self) -> None:
        """Follow changes from the last version on; without one, begin with all that there is."""
        around = self._around
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(round(around.random.uniform(*WATCH_SECONDS))),
        }
        began, before = around.clock.now(), self.last_read
        if self._version:
            response = self._get(query | {"resourceVersion": self._version}, around.silence)
            if not self._doubtful:
                around.outages.over(self.resource.kind)
            with closing(response):
                for line in self._lines(response):
                    self._change(stream.event(line))
        else:
            query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
            silence = min(around.silence, LISTING_SILENCE)
            with closing(self._get(query, silence)) as response:
                self._stream(self._lines(response))
        lasted = around.clock.now() - began
        if lasted >= SHORTEST_WATCH:
            self._backoff.reset()
        elif self.last_read == before:
            around.clock.wait(around.stopping, SHORTEST_WATCH - lasted)

    def _stream(self, lines: Iterator[memoryview]) -> None:
        """Read a streaming list to its end, then the changes that follow on the same watch."""
        self._unfinished += 1
        if self._unfinished >= STREAMS_TRIED:
            self._streams = False  # until this one proves to be whole
        names: set[ObjectName] = set()
        self._set_aside.clear()
        for line in lines:
            event = stream.event(line)
            if event.type == "BOOKMARK":
                meta = stream.bookmark(event.object)
                if meta.annotations is None or meta.annotations.initial_events_end != "true":
                    self._streams = False
                    raise BrokenError("a bookmark within a streaming list: pages are used")
                self._streams, self._unfinished = True, 0
                self._whole(names, meta.resource_version)
                break
            self._change(event, names)
        else:
            raise BrokenError("a streaming list ended before it was whole")
        for line in lines:
            self._change(stream.event(line))

    def _whole(self, names: set[ObjectName], version: str | None) -> None:
        """Say that a list is whole, and remember its version."""
        if not version:
            raise GarbledError(f"{self.resource.path}: a list without resourceVersion")
        aside = frozenset(self._set_aside)
        self._around.emit(Synced(self.resource.kind, frozenset(names), aside))
        self._version, self._from_cache = version, True
        self._answered()

    def _change(self, event: wire.WatchEvent, listing: set[ObjectName] | None = None) -> None:
        """Pass one change on, and go on from its version unless it is part of a list."""
        if event.type == "BOOKMARK":
            self._advance(stream.bookmark(event.object).resource_version or "")
        elif event.type == "DELETED":
            self._drop(event.object, listing)
        elif event.type in {"ADDED", "MODIFIED"}:
            self._take(event.object, listing)
        else:
            log.warning("%s: a watch event of unknown type %r", self.resource.path, event.type)

    def _advance(self, version: str) -> None:
        """Go on from a version.

        Raises GoneError where it is older than the last one. Versions of one kind only grow, so
        this server has another history than the one that is known (its storage was restored from a
        backup, say), and a watch would keep silent until that history has caught up.
        """
        if _older(version, self._version):
            raise GoneError(f"the server went from version {self._version} back to {version}")
        self._version = version or self._version
        self._backoff.reset()
        self._answered()

    def _take(self, raw: Raw, listing: set[ObjectName] | None) -> None:
        """Pass one object on as it is now.

        `listing` are the names of a list that is being read: those that exist for us.
        """
        kind, emit = self.resource.kind, self._around.emit
        reading = decode_object(kind, raw)
        if listing is None:
            self._advance(reading.version)
        name, value = reading.name, reading.value
        if name is not None and not self._wanted(name):
            return
        if isinstance(value, Problem):
            self._delete(name, listing)
            emit(InvalidObject(value))
            if listing is not None:
                self._set_aside.add(value.name)
        elif isinstance(value, NotProxied):
            log.debug("%s %s is not ours: %s", kind.value, name, value.reason)
            self._delete(name, listing)
        else:
            emit(Upsert(value, self.last_read or 0.0))
            if listing is not None and name is not None:
                listing.add(name)

    def _drop(self, raw: Raw, listing: set[ObjectName] | None) -> None:
        """Pass on that one object is gone.

        kube-apiserver gives it the version of its deletion; the object's last one, as other servers
        may give it, is no step back in history.
        """
        reading = decode_object(self.resource.kind, raw)
        if listing is None and not _older(reading.version, self._version):
            self._advance(reading.version)
        if reading.name is None and isinstance(reading.value, Problem):
            self._around.emit(InvalidObject(reading.value))
        self._delete(reading.name, listing)

    def _delete(self, name: ObjectName | None, listing: set[ObjectName] | None) -> None:
        if name is not None and self._wanted(name):
            self._around.emit(Delete(self.resource.kind, name, self.last_read or 0.0))
            if listing is not None:
                listing.discard(name)

    def _wanted(self, name: ObjectName) -> bool:
        return self.resource.only is None or name == self.resource.only

    def _lines(self, response: BaseHTTPResponse) -> Iterator[memoryview]:
        """Give the lines of a watch as they come; the end of lines is the end of the watch.

        Silence is such an end too. A healthy server lets bookmarks be heard about every minute, but
        asking again after a shorter silence costs it only a request that it answers from memory,
        and finds a half-open connection within that time even where a middlebox acknowledges
        for a server that is no longer behind it.
        Raises BrokenError when the connection breaks, and when it ends within a line.
        """
        return stream.lines(self._chunks(response))

    def _chunks(self, response: BaseHTTPResponse) -> Iterator[bytes]:
        while True:
            try:
                chunk = response.read1(_READ_SIZE)
            except ReadTimeoutError:
                log.debug("%s: silence, asking again", self.resource.path)
                return
            except (HTTPError, OSError) as error:
                raise BrokenError(f"a watch broke off: {error}") from error
            if not chunk:
                return
            self.last_read = self._around.clock.now()
            yield chunk


def _older(version: str, than: str) -> bool:
    """Compare two versions, which are numbers in every API server that stores its own objects."""
    numbers = version.isdecimal() and than.isdecimal()
    return numbers and (len(version), version) < (len(than), than)
