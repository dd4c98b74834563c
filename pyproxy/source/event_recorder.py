"""Kubernetes Events about invalid objects, shown by `kubectl describe`.

One thread posts them through events.k8s.io/v1; nothing waits for it. Events beyond the queue or the
limits, and those that the API server rejects, are dropped and counted.

A thousand nodes find the same error in the same Service. The name of an Event is a digest of its
content, so the first node creates the Event and the others get a cheap 409. Events about one node
include the node in the digest. Each is posted after a random delay, so that nodes do not post at
the same moment.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import logging
import threading
from datetime import UTC, datetime
from random import SystemRandom
from urllib.parse import quote

import msgspec
from msgspec import UNSET, UnsetType

from pyproxy.errors import Problem, SourceError
from pyproxy.metrics import Metrics
from pyproxy.model.objects import Kind
from pyproxy.source.client import ApiStatusError, Client
from pyproxy.source.retry import Clock, SystemClock
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

CONTROLLER = "pyproxy"
STARTING = "Starting"
STOP_TIMEOUT = 1.0
"""Seconds that `stop` waits for the thread."""

_TIMEOUT = 10.0
_EXISTS = 409
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


class Limits(msgspec.Struct, frozen=True):
    """Rate limits of posting.

    At most `queue` Events wait. Each is delayed by up to `spread` seconds, then by the limit for
    all Events: `burst` at once, then one every `period` seconds. Events about one object beyond
    `object_burst` at once and one every `object_period` seconds are dropped.
    """

    queue: int = 200
    spread: float = 10.0
    burst: int = 10
    period: float = 5.0
    object_burst: int = 5
    object_period: float = 300.0


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


class _TokenBucket(msgspec.Struct):
    """`burst` tokens, refilled with one every `period` seconds (as a GCRA)."""

    burst: int
    period: float
    full_at: float = 0.0

    def wait(self, now: float) -> float:
        """Return the seconds until a token is available."""
        # `full_at` is the time at which all tokens are back, or were.
        return max(0.0, self.full_at - now - (self.burst - 1) * self.period)

    def take(self, now: float) -> None:
        """Take a token."""
        self.full_at = max(self.full_at, now) + self.period


class EventRecorder:
    """Posts Events about Problems on behalf of the node `node_name`.

    `record_problem` and `record_start` never block, and may be called from any thread and before
    `start`.
    """

    def __init__(
        self,
        client: Client,
        node_name: str,
        metrics: Metrics,
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
        # The heap compares these numbers before it would compare Events, which have no order.
        self._numbers = itertools.count()
        self._queue: list[tuple[float, int, _Event]] = []
        self._object_buckets: dict[tuple[str, str], _TokenBucket] = {}
        self._bucket = _TokenBucket(limits.burst, limits.period)
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
        local = self._node_name if problem.reason.node_specific else ""
        # With the uid, an object that was deleted and made again has an Event of its own.
        identity = (str(problem), uid, problem.reason.value, local)
        action = f"Program{problem.kind}"
        note = f"{problem.field}: {problem.message}"
        self._put(self._event("Warning", problem.reason.value, action, note, regarding, identity))

    def record_start(self) -> None:
        """Queue the Event that the proxy of this node starts."""
        # kubectl looks up the Events of a Node with its name as uid, as the kubelet sets it.
        regarding = _regarding(Kind.NODE.value, self._node_name, self._node_name)
        assert regarding is not None  # noqa: S101 (_API_VERSIONS has Node)
        # With the time, because each start is a new Event and not a known one.
        identity = (STARTING, datetime.now(UTC).isoformat())
        self._put(self._event("Normal", STARTING, "StartPyproxy", "", regarding, identity))

    def _event(
        self,
        kind: str,
        reason: str,
        action: str,
        note: str,
        regarding: _Regarding,
        identity: tuple[str, ...],
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
            fits = len(self._queue) < self._limits.queue and self._within_object_limit(event, now)
            if fits:
                due = now + self._random.uniform(0, self._limits.spread)
                heapq.heappush(self._queue, (due, next(self._numbers), event))
        if fits:
            self._wake.set()
        else:
            self._metrics.event("dropped")

    def _within_object_limit(self, event: _Event, now: float) -> bool:
        key = (event.regarding.kind, f"{event.metadata.namespace}/{event.regarding.name}")
        bucket = self._object_buckets.pop(key, None)
        if bucket is None:
            bucket = _TokenBucket(self._limits.object_burst, self._limits.object_period)
        # Inserted last again, so that the first bucket is the one unused for the longest time.
        self._object_buckets[key] = bucket
        if len(self._object_buckets) > _REMEMBERED:
            del self._object_buckets[next(iter(self._object_buckets))]
        if bucket.wait(now):
            return False
        bucket.take(now)
        return True

    def _run(self) -> None:
        while not self._stopping:
            # Cleared before the queue is read: an Event that is added after the read sets it again.
            self._wake.clear()
            event, delay = self._next()
            if event is None:
                self._clock.wait(self._wake, delay)
            else:
                self._post(event)

    def _next(self) -> tuple[_Event | None, float]:
        """Return the next Event that is due, or None and the seconds until there may be one."""
        now = self._clock.now()
        with self._lock:
            if not self._queue:
                return None, 3600.0
            delay = max(self._queue[0][0] - now, self._bucket.wait(now))
            if delay > 0:
                return None, delay
            self._bucket.take(now)
            return heapq.heappop(self._queue)[2], 0.0

    def _post(self, event: _Event) -> None:
        path = f"/apis/events.k8s.io/v1/namespaces/{quote(event.metadata.namespace)}/events"
        try:
            self._client.post(path, msgspec.json.encode(event), _TIMEOUT)
        except SourceError as error:
            if isinstance(error, ApiStatusError) and error.status == _EXISTS:
                self._metrics.event("known")
                return
            self._metrics.event("refused")
            kind = f"{type(error).__name__} {getattr(error, 'status', '')}"
            if kind not in self._logged:
                log.debug("cannot post an Event, dropping it: %s", error)
                self._logged.add(kind)
        else:
            self._metrics.event("posted")


def _regarding(kind: str, name: str, uid: str) -> _Regarding | None:
    """Return a reference to an object, or None for a kind that the API does not have."""
    api_version = _API_VERSIONS.get(kind)
    if api_version is None:
        return None
    namespace, slash, last = name.rpartition("/")
    return _Regarding(kind, api_version, last, namespace if slash else UNSET, uid or UNSET)


def _cut(text: str, limit: int) -> str:
    return text.encode()[:limit].decode(errors="ignore")
