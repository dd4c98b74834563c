"""List and watch one kind of object, as client-go's Reflector does.

The state is one resourceVersion. With a version, a watch continues from it. Without one, the
objects are listed: by a watch with sendInitialEvents, or in pages if the server does not support
that. A watch that ends continues from its last version without a new list, except after a 410 and
when watches from that version keep failing.

Facts: the Kubernetes API concepts on watches, bookmarks, streaming lists, and chunked lists.
kube-apiserver sends bookmarks every 60 to 75 seconds, and 2 seconds before timeoutSeconds. An idle
watch that silence ends would have neither, so watches that follow it are shorter than the silence.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from random import Random
from typing import Any, NamedTuple

import msgspec
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, ReadTimeoutError

from pyproxy.errors import SourceError
from pyproxy.model.events import Event
from pyproxy.model.objects import ObjectName
from pyproxy.source import stream
from pyproxy.source.body import (
    LARGEST_PAGE,
    Progress,
    TooLargeError,
)
from pyproxy.source.client import ApiStatusError, Client
from pyproxy.source.connections import set_read_timeout
from pyproxy.source.formats import Format, ListPage, WatchEvent, format_of
from pyproxy.source.list_mode import ListMode
from pyproxy.source.media_types import DEFAULT_ACCEPT, JSON_TYPE
from pyproxy.source.object_events import ObjectEvents, Resource
from pyproxy.source.outages import OutageLog
from pyproxy.source.retry import Clock, RequestPacing
from pyproxy.source.stream import (
    ConnectionLostError,
    GoneError,
    MalformedResponseError,
)
from pyproxy.source.watch_failures import UNUSABLE, Proof, Recovery, WatchFailures, is_outage

log = logging.getLogger(__name__)

WATCH_SECONDS = (1800.0, 3600.0)
"""The range of timeoutSeconds, drawn for each watch so that nodes reconnect at different times.

kube-apiserver v1.36 draws from the same range for clients that name none. client-go has 300 to 600,
but repeats no headers in HTTP/2. A hung watch is detected by its silence.
"""

_IDLE_SHARE = 0.9
"""The timeoutSeconds of watches after a silent one, as a share of the silence."""

_SHORTEST_IDLE_WATCH = 3
"""The timeoutSeconds below which a server may send no bookmark before the end."""

LISTING_SILENCE = 10.0
"""Seconds without a byte after which a streaming list is abandoned."""

LARGEST_LIST = 1_000_000
"""Objects of a list; more are an error, as continue tokens may never end."""

LONGEST_VERSION = 128
"""Characters of a resourceVersion, which is part of URLs; etcd's have 20 at most."""

# 504 is "Too large resource version": the server's cache has not reached this version.
_WRONG_VERSION = frozenset({400, 404, 422, 504})
"""Statuses after which the same request might fail forever, so that a new list is needed."""

_READ_SIZE = 1 << 16


class _GivenUp(NamedTuple):
    """A version before a list because of failed watches.

    `moves` is the client's count at the list of that version, and `needed` the success that would
    have ended the failure.
    """

    version: str
    moves: int
    needed: Proof


class ReflectorContext(msgspec.Struct, frozen=True):
    """The parts that all reflectors of a source share.

    `silence` is how many seconds a watch may stay without a byte. `emit` is called from the thread
    of each reflector. `accept` is the header Accept of requests.
    """

    client: Client
    emit: Callable[[Event], None]
    clock: Clock
    random: Random
    silence: float
    stopping: threading.Event
    outages: OutageLog
    accept: str = DEFAULT_ACCEPT


class Reflector:
    """Lists and watches one kind; `run` is the body of its thread.

    `last_read` is the time of the last bytes of an event or bookmark, on the source's clock.
    """

    def __init__(self, resource: Resource, context: ReflectorContext) -> None:
        self.resource = resource
        self.last_read: float | None = None
        self._context = context
        self._accept = context.accept
        self._pacing = RequestPacing(context.random, context.clock.now())
        self._version = ""  # empty: list first
        # The client's count of moves when the list began.
        self._moves = context.client.moves
        self._mode = ListMode()
        self._recovery = Recovery(partial(context.outages.succeeded, resource.kind))
        self._failures = WatchFailures()
        # Watched again if the list fails too: then the server has an outage, and if all nodes
        # listed at its end, they would be the next one.
        self._given_up: _GivenUp | None = None
        # Whether the last watches had no object, and one of them not even a bookmark.
        self._idle = False
        self._lost_connections = 0
        self._objects = ObjectEvents(
            resource, context.emit, self._advance, context.clock, context.stopping
        )

    def run(self) -> None:
        """List and watch until the source stops."""
        stopping, clock = self._context.stopping, self._context.clock
        while not stopping.is_set():
            self._pacing.begin(clock.now())
            watching = bool(self._version) or self._mode.streaming
            if not self._version:
                self._moves = self._context.client.moves
            failed: SourceError | None = None
            try:
                if watching:
                    self._watch()
                else:
                    self._list_pages()
            except SourceError as error:
                failed = error
            except Exception:
                # A fault in pyproxy: Worker logs it and calls `run` again. A change may be lost.
                self._version, self._given_up = "", None
                raise
            # `stop` breaks requests in progress, which is no outage.
            if not stopping.is_set() and (delay := self._delay(watching, failed)):
                clock.wait(stopping, delay)

    def _delay(self, watching: bool, failed: SourceError | None) -> float:
        """Handle the end of a request, and return the seconds until the next one."""
        now = self._context.clock.now()
        delay = self._pacing.after_watch(now, failed is not None) if watching else 0.0
        if failed is not None:
            had_version = bool(self._version)
            self._handle_error(failed)
            lists = not self._version and (had_version or isinstance(failed, UNUSABLE))
            delay = max(delay, self._pacing.after_failure(failed, lists=lists))
            if had_version and not self._version:
                delay = max(delay, self._pacing.before_relist(now))
            elif is_outage(failed):
                self._pacing.note_outage(now)
        return delay

    def _watch(self) -> None:
        """Watch from the last version on; without a version, list by a watch first."""
        context = self._context
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(self._watch_seconds()),
        }
        if self._version:
            response, form = self._get(query | {"resourceVersion": self._version}, context.silence)
            self._recovery.note(Proof.HEAD)
            with closing(response):
                for frame in form.frames(self._chunks(response)):
                    self._apply(form, form.event(frame))
        else:
            # KEP-3157: without a resourceVersion the list is as new as the storage is now. The API
            # requires resourceVersionMatch together with sendInitialEvents.
            query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
            silence = min(context.silence, LISTING_SILENCE)
            response, form = self._get(query, silence)
            with closing(response):
                progress = Progress(context.clock.now())
                frames = form.frames(self._chunks(response, progress))
                self._list_stream(form, frames)
                progress.complete()
                # The same response goes on as the watch, without a second request.
                set_read_timeout(response, context.silence)
                for frame in frames:
                    self._apply(form, form.event(frame))

    def _watch_seconds(self) -> int:
        short = int(self._context.silence * _IDLE_SHARE)
        if self._idle and self._version and short >= _SHORTEST_IDLE_WATCH:
            return short
        return round(self._context.random.uniform(*WATCH_SECONDS))

    def _list_stream(self, form: Format, frames: Iterator[Any]) -> None:
        """Read a streaming list up to its closing bookmark."""
        self._mode.stream_began()
        names: set[ObjectName] = set()
        self._objects.begin_list()
        for frame in frames:
            event = form.event(frame)
            if event.type == "BOOKMARK":
                meta = form.bookmark(event.object)
                # A server that ignores sendInitialEvents sends objects and bookmarks too, but never
                # marks the end of the list.
                if meta.annotations is None or meta.annotations.initial_events_end != "true":
                    self._mode.streaming = False
                    raise ConnectionLostError("a bookmark within a streaming list: using pages")
                self._mode.stream_completed()
                self._list_complete(names, meta.resource_version)
                return
            self._apply(form, event, names)
            self._check_size(names)
        raise ConnectionLostError("a streaming list ended before its closing bookmark")

    def _list_pages(self) -> None:
        """Read all objects in pages."""
        names: set[ObjectName] = set()
        self._objects.begin_list()
        query = self._mode.first_page()
        while True:
            try:
                page = self._read_page(query)
            except GoneError:
                self._mode.token_expired(query)
                raise
            except TooLargeError:
                self._mode.page_too_large()
                raise
            for raw in page.items or ():
                self._objects.upsert(raw, self.last_read or 0.0, names)
            if not page.metadata.continue_:
                break
            self._check_size(names)
            if not page.items:
                raise MalformedResponseError(f"{self.resource.path}: an empty page within a list")
            query = self._mode.next_page(page.metadata.continue_)
        self._list_complete(names, page.metadata.resource_version)

    def _check_size(self, names: set[ObjectName]) -> None:
        if len(names) + self._objects.invalid > LARGEST_LIST:
            raise TooLargeError(f"{self.resource.path}: a list of more than {LARGEST_LIST} objects")

    def _read_page(self, query: dict[str, str]) -> ListPage:
        context = self._context
        response, form = self._get(query, context.silence, compressed=True)
        with closing(response):
            try:
                data = context.client.read(response, LARGEST_PAGE, context.clock.now)
            except (HTTPError, OSError) as error:
                raise ConnectionLostError(f"connection lost in a list: {error}") from error
        self.last_read = context.clock.now()
        return form.object_list(data, self.resource.list_kind)

    def _list_complete(self, names: set[ObjectName], version: str | None) -> None:
        """Emit Synced, and store the version that the next watch starts from."""
        if not version:
            raise MalformedResponseError(f"{self.resource.path}: a list without resourceVersion")
        self._check_version(version)
        self._objects.complete(names)
        self._version = version
        self._failures.clear()
        self._mode.completed()
        self._note_success(Proof.CONTENT)
        if self._given_up is not None:
            self._recovery.needed, self._given_up = self._given_up.needed, None

    def _apply(
        self, form: Format, event: WatchEvent, listing: set[ObjectName] | None = None
    ) -> None:
        """Emit one change; outside a list, store its version.

        `listing` collects the names of a list in progress.
        """
        # KEP-956: without bookmarks the version of a kind that rarely changes would become too old,
        # and a reconnect would need a new list.
        if event.type == "BOOKMARK":
            self._advance(form.bookmark(event.object).resource_version or "")
            return
        self._idle = False
        # An object that no longer matches the selector arrives as DELETED, one that now matches as
        # ADDED.
        if event.type == "DELETED":
            # kube-apiserver sends the version of the deletion. Other servers may send the last one
            # of the object, which is not a step back in history.
            version = self._objects.delete(event.object, self.last_read or 0.0, listing)
            if listing is None and not stream.is_older(version, self._version):
                self._advance(version)
        elif event.type in {"ADDED", "MODIFIED"}:
            self._objects.upsert(event.object, self.last_read or 0.0, listing)
        else:
            text = f"watch event of unknown type {event.type!r:.40}"
            raise MalformedResponseError(f"{self.resource.path}: {text}")

    def _advance(self, version: str) -> None:
        """Store a version.

        Raises GoneError if it is older than the last one. Versions of one kind only grow, so an
        older one means another history, for example because etcd was restored from a backup. A
        watch would then stay silent until that history has caught up.
        """
        if stream.is_older(version, self._version):
            raise GoneError(f"the server went from version {self._version} back to {version}")
        self._check_version(version)
        proof = Proof.CONTENT
        if version and version != self._version:
            self._version = version
            self._failures.clear()
            proof = Proof.CHANGE
        self._pacing.note_event()
        self._note_success(proof)

    def _check_version(self, version: str) -> None:
        if len(version) > LONGEST_VERSION:
            text = f"a resourceVersion of {len(version)} characters"
            raise MalformedResponseError(f"{self.resource.path}: {text}")

    def _note_success(self, proof: Proof) -> None:
        """Note that the server works, by an event or a complete list."""
        self._lost_connections = 0
        self._pacing.note_recovery()
        self._recovery.note(proof)

    def _handle_error(self, error: SourceError) -> None:
        """Choose the next request, and log the error unless it is a normal one."""
        kind = self.resource.kind
        if isinstance(error, GoneError):
            log.info("%s: listing again: %s", kind.value, error)
            self._version, self._given_up = "", None
            self._mode.require_newest()
            return
        keeps_failing = bool(self._version) and self._failures.note(error)
        if isinstance(error, ConnectionLostError) and not keeps_failing:
            self._lost_connections += 1
            if self._lost_connections < 2:  # a server that restarts closes its connections once
                log.debug("%s: %s", kind.value, error)
                return
        status = 0
        if isinstance(error, ApiStatusError) and not error.needs_tls:
            status = error.status
        # RFC 9110 lets a server reject a header whose first type it lacks.
        if status == 406 and self._accept != JSON_TYPE:
            log.info("%s: the server rejects %s, using JSON", kind.value, self._accept)
            self._accept = JSON_TYPE
            return
        # The validation of a server without the feature WatchList rejects sendInitialEvents.
        if status in {400, 422} and self._mode.streaming and not self._version:
            log.info("%s: the server has no streaming lists, using pages", kind.value)
            self._mode.streaming = False
            return
        self._recovery.failed(error, in_watch=bool(self._version))
        if self._given_up is not None and is_outage(error):
            self._version, self._moves, self._recovery.needed = self._given_up
            self._given_up = None
            self._failures.clear()
        elif isinstance(error, UNUSABLE) or status in _WRONG_VERSION:
            self._version, self._given_up = "", None
            self._mode.require_newest()
        elif keeps_failing:
            self._given_up = _GivenUp(self._version, self._moves, self._recovery.needed)
            self._version, self._recovery.needed = "", Proof.CHANGE
            self._mode.require_newest()
        self._context.outages.failed(kind, error)

    def _get(
        self, query: dict[str, str], silence: float, *, compressed: bool = False
    ) -> tuple[BaseHTTPResponse, Format]:
        """Request objects of this kind; return the response, `compressed` or not, and its format.

        Raises GoneError, MalformedResponseError, and the errors of Client.get.
        """
        client, resource = self._context.client, self.resource
        try:
            response = client.get(
                resource.path,
                resource.selector | query,
                silence,
                self._accept,
                compressed=compressed,
            )
        except ApiStatusError as error:
            if error.status == 410:
                raise GoneError(str(error)) from error
            raise
        # A version of another cluster, or of a restored one, means nothing to this server.
        if client.moves != self._moves:
            response.close()
            raise GoneError(f"the server is {client.host} now")
        content_type = response.headers.get("Content-Type", "")
        form = format_of(content_type)
        # An HTTP proxy on the way may respond 200 with a page of HTML.
        if form is None:
            response.close()
            message = (
                f"{client.host}{resource.path}: response of type {content_type!r:.80}, not JSON"
            )
            raise MalformedResponseError(message)
        return response, form

    def _chunks(
        self, response: BaseHTTPResponse, progress: Progress | None = None
    ) -> Iterator[bytes]:
        """Yield the bytes of a watch as they arrive, until the watch ends or falls silent.

        Silence ends a watch because a half-open connection looks the same, even when a middlebox
        acknowledges for a dead server. A restart from the last version costs one request.
        Raises ConnectionLostError if the connection breaks, and TooSlowError if a list makes no
        `progress`.
        """
        while True:
            try:
                # read1 returns the bytes that have arrived; read would wait for all of _READ_SIZE.
                chunk = response.read1(_READ_SIZE)
            except ReadTimeoutError:
                log.debug("%s: watch is silent, restarting it", self.resource.path)
                self._idle = True
                return
            except (HTTPError, OSError) as error:
                raise ConnectionLostError(f"connection lost in a watch: {error}") from error
            if not chunk:
                return
            # Taken before decoding, so that the latency of a change includes it.
            self.last_read = self._context.clock.now()
            if progress is not None:
                progress.received(len(chunk), self.last_read)
            yield chunk
