"""Kubernetes Events about invalid objects, shown by `kubectl describe`.

One thread posts them through events.k8s.io/v1; nothing waits for it. Events beyond the queue or the
limits, and those that the API server rejects, are dropped and counted. While the server cannot be
reached or is overloaded, the thread pauses, and the Events wait: a problem is reported only once.

Ten thousand nodes find the same error in the same Service. The name of an Event is a digest of its
content, so the first node creates the Event and the others get a cheap 409. Each node posts after a
random delay, which grows while other nodes are first. Events about one node have one of few names
for each object, so that not every node creates one.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import logging
import re
import threading
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from random import SystemRandom
from urllib.parse import quote

import msgspec
from msgspec import UNSET, UnsetType

from pyproxy.errors import Problem, SourceError
from pyproxy.metrics.api import ApiMetrics
from pyproxy.model.objects import Kind
from pyproxy.rate_limits import BucketTable, Rate, TokenBucket
from pyproxy.source.body import TooLargeError
from pyproxy.source.client import ApiStatusError, Client
from pyproxy.source.retry import ApiBackoff, Clock, SystemClock
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

CONTROLLER = "pyproxy"
STARTING = "Starting"
STOP_TIMEOUT = 1.0
"""Seconds that `stop` waits for the thread."""

_TIMEOUT = 10.0
_EXISTS = 409
_TOO_MANY_REQUESTS = 429
_API_VERSIONS = {
    Kind.SERVICE.value: "v1",
    Kind.ENDPOINT_SLICE.value: "discovery.k8s.io/v1",
    Kind.NODE.value: "v1",
}
# The API server's limits, in bytes.
_NOTE_LIMIT = 1024
_INSTANCE_LIMIT = 128
_NAME_LIMIT = 253
_REMEMBERED = 1000
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")

_NODE_SLOTS = 16
"""The most Events of one reason about one object, of a reason that concerns single nodes."""


class Limits(msgspec.Struct, frozen=True):
    """Rate limits of posting.

    At most `queue` Events wait. Each is delayed by up to `spread` seconds, or by up to
    `longest_spread` while other nodes post the same Events first. `rate` is that of all posts.
    Events beyond the rates of their object or of their namespace are dropped.

    After a failure that may pass, nothing is posted for up to `first_pause` seconds, doubled at
    each further failure up to `longest_pause`. An Event is posted `attempts` times at most.
    """

    queue: int = 100
    spread: float = 10.0
    longest_spread: float = 120.0
    rate: Rate = Rate(25, 60.0)
    per_object: Rate = Rate(5, 300.0)
    per_namespace: Rate = Rate(10, 120.0)
    # As in client-go.
    attempts: int = 12
    # As the spread, because all nodes lose the same server at the same moment.
    first_pause: float = 10.0
    longest_pause: float = 120.0


DEFAULT_LIMITS = Limits()


class _Regarding(msgspec.Struct, frozen=True, rename="camel"):
    kind: str
    api_version: str
    name: str
    namespace: str | UnsetType = UNSET
    uid: str | UnsetType = UNSET


class _Metadata(msgspec.Struct, frozen=True):
    name: str
    namespace: str


class _Event(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """An Event of events.k8s.io/v1, with the fields that its validation requires."""

    api_version: str = "events.k8s.io/v1"
    kind: str = "Event"
    metadata: _Metadata
    event_time: str
    type: str
    reason: str
    action: str
    note: str
    regarding: _Regarding
    reporting_controller: str = CONTROLLER
    reporting_instance: str


class _Queued(msgspec.Struct, frozen=True, order=True):
    """An Event that waits until `due`; `number` is unique."""

    due: float
    # The heap compares these numbers before it would compare Events, which have no order.
    number: int
    event: _Event
    failures: int = 0


class EventRecorder:
    """Posts Events about Problems on behalf of the node `node_name`.

    `record_problem` and `record_start` never block, and may be called from any thread and before
    `start`.
    """

    def __init__(
        self,
        client: Client,
        node_name: str,
        metrics: ApiMetrics,
        limits: Limits = DEFAULT_LIMITS,
        clock: Clock | None = None,
    ) -> None:
        self._client = client
        self._node_name = node_name
        self._metrics = metrics
        self._limits = limits
        self._clock = clock or SystemClock()
        self._random = SystemRandom()
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._queue: list[_Queued] = []
        self._objects = BucketTable(limits.per_object, _REMEMBERED)
        self._namespaces = BucketTable(limits.per_namespace, _REMEMBERED)
        self._bucket = TokenBucket(limits.rate)
        self._spread = limits.spread
        self._backoff = ApiBackoff(self._random, limits.first_pause, limits.longest_pause)
        self._paused_until = 0.0
        self._logged: set[str] = set()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = Worker("events", self._run)

    def start(self) -> None:
        """Start the thread; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and drop the queue. Blocks for a second at most; idempotent."""
        self._stopping = True
        self._wake.set()
        self._thread.end(STOP_TIMEOUT)

    def record_problem(self, problem: Problem, uid: str = "") -> None:
        """Queue a Warning; `uid` is that of the object, empty if unknown."""
        regarding = _regarding(problem.kind, problem.name, uid)
        if regarding is None:
            return
        if not _is_valid(regarding):
            # The API server would reject the Event's own name, which begins with this one.
            self._metrics.event("dropped")
            return
        # With the uid, an object that was deleted and made again has an Event of its own.
        identity = [problem.kind, problem.name, uid, problem.reason.value]
        if problem.reason.node_specific:
            # crc32, because hash() differs at each start.
            identity.append(str(zlib.crc32(self._node_name.encode()) % _NODE_SLOTS))
        else:
            identity += (problem.field, problem.message)
        action = f"Program{problem.kind}"
        note = f"{problem.field}: {problem.message}"
        self._put(self._event("Warning", problem.reason.value, action, note, regarding, identity))

    def record_start(self) -> None:
        """Queue the Event that the proxy of this node starts."""
        # kubectl looks up the Events of a Node with its name as uid, as the kubelet sets it.
        regarding = _regarding(Kind.NODE.value, self._node_name, self._node_name)
        assert regarding is not None  # noqa: S101 (_API_VERSIONS has Node)
        # With the time, because each start is a new Event and not a known one.
        identity = [STARTING, datetime.now(UTC).isoformat()]
        self._put(self._event("Normal", STARTING, "StartPyproxy", "", regarding, identity))

    def _event(
        self,
        kind: str,
        reason: str,
        action: str,
        note: str,
        regarding: _Regarding,
        identity: Sequence[str],
    ) -> _Event:
        digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:16]
        # A DNS subdomain: no label of it may end with a hyphen or be empty.
        name = regarding.name[: _NAME_LIMIT - 1 - len(digest)].rstrip("-.")
        # The API server requires the namespace default for Events about cluster-scoped objects.
        return _Event(
            metadata=_Metadata(f"{name}.{digest}", regarding.namespace or "default"),
            # MicroTime is parsed with exactly six digits of a second.
            event_time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            type=kind,
            reason=reason,
            action=action,
            note=_cut(note, _NOTE_LIMIT),
            regarding=regarding,
            reporting_instance=_cut(self._node_name, _INSTANCE_LIMIT),
        )

    def _put(self, event: _Event) -> None:
        now = self._clock.now()
        with self._lock:
            fits = len(self._queue) < self._limits.queue and self._within_limits(event, now)
            if fits:
                due = now + self._random.uniform(0, self._spread)
                heapq.heappush(self._queue, _Queued(due, next(self._numbers), event))
        if fits:
            self._wake.set()
        else:
            self._metrics.event("dropped")

    def _within_limits(self, event: _Event, now: float) -> bool:
        namespace = event.metadata.namespace
        buckets = (
            self._objects.bucket((event.regarding.kind, namespace, event.regarding.name)),
            self._namespaces.bucket(namespace),
        )
        if any(bucket.wait(now) for bucket in buckets):
            return False
        for bucket in buckets:
            bucket.take(now)
        return True

    def _run(self) -> None:
        while not self._stopping:
            # Cleared before the queue is read: an Event that is added after the read sets it again.
            self._wake.clear()
            queued, delay = self._next()
            if queued is None:
                self._clock.wait(self._wake, delay)
            else:
                self._post(queued)

    def _next(self) -> tuple[_Queued | None, float]:
        """Return the next Event that is due, or None and the seconds until there may be one."""
        now = self._clock.now()
        with self._lock:
            if not self._queue:
                return None, 3600.0
            due = max(self._queue[0].due, self._paused_until)
            delay = max(due - now, self._bucket.wait(now))
            if delay > 0:
                return None, delay
            # Failures take tokens too: nodes post at the same rate to a server that fails.
            self._bucket.take(now)
            return heapq.heappop(self._queue), 0.0

    def _post(self, queued: _Queued) -> None:
        event = queued.event
        path = f"/apis/events.k8s.io/v1/namespaces/{quote(event.metadata.namespace)}/events"
        try:
            self._client.post(path, msgspec.json.encode(event), _TIMEOUT)
        except SourceError as error:
            if _may_pass(error):
                self._post_later(queued, error)
                return
            self._backoff.reset()
            if isinstance(error, ApiStatusError) and error.status == _EXISTS:
                # Many nodes post the same Events, so this one leaves them more time to be first.
                self._set_spread(2 * self._spread)
                self._metrics.event("known")
                return
            self._log_once(error, "dropping it")
            self._metrics.event("refused")
        else:
            self._backoff.reset()
            self._set_spread(self._spread / 2)
            self._metrics.event("posted")

    def _post_later(self, queued: _Queued, error: SourceError) -> None:
        """Put an Event back, unless it failed often or the queue is full; pause all posts."""
        self._log_once(error, "trying again later")
        failures = queued.failures + 1
        with self._lock:
            self._paused_until = self._clock.now() + self._backoff.next(error)
            fits = len(self._queue) < self._limits.queue
            is_last = failures >= self._limits.attempts
            if fits and not is_last:
                # Behind Events that are due, so that one that fails always does not block them.
                again = _Queued(self._paused_until, next(self._numbers), queued.event, failures)
                heapq.heappush(self._queue, again)
                return
        self._metrics.event("refused" if is_last else "dropped")

    def _log_once(self, error: SourceError, reaction: str) -> None:
        kind = f"{type(error).__name__} {getattr(error, 'status', '')}"
        if kind not in self._logged:
            log.debug("cannot post an Event, %s: %s", reaction, error)
            self._logged.add(kind)

    def _set_spread(self, seconds: float) -> None:
        with self._lock:
            limits = self._limits
            self._spread = max(limits.spread, min(seconds, limits.longest_spread))


def _may_pass(error: SourceError) -> bool:
    """Return whether the same request may succeed later."""
    if isinstance(error, ApiStatusError):
        return error.status == _TOO_MANY_REQUESTS or error.status >= 500
    # The Event exists if the response to it was too large.
    return not isinstance(error, TooLargeError)


def _regarding(kind: str, name: str, uid: str) -> _Regarding | None:
    """Return a reference to an object, or None for a kind that the API does not have."""
    api_version = _API_VERSIONS.get(kind)
    if api_version is None:
        return None
    namespace, slash, last = name.rpartition("/")
    return _Regarding(kind, api_version, last, namespace if slash else UNSET, uid or UNSET)


def _is_valid(regarding: _Regarding) -> bool:
    """Return whether an object has names that the API server accepts."""
    namespace = regarding.namespace
    return bool(_NAME.fullmatch(regarding.name)) and (
        namespace is UNSET or bool(_NAMESPACE.fullmatch(namespace))
    )


def _cut(text: str, limit: int) -> str:
    # Surrogates, which UTF-8 cannot encode, do not occur in a Problem.
    return text.encode()[:limit].decode(errors="ignore")
