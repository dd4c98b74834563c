"""Events: what is wrong with an object, told where whoever owns it looks.

They are posted through events.k8s.io/v1 by a thread of their own, and nothing waits for them: what
does not fit into the queue or the limits is dropped and counted, and so is what the API server
refuses.

A thousand nodes find the same mistake in the same Service. The name of an Event is made of what it
says, so the first node to post it makes the one Event there is, and the others are told that it
exists (409), which costs the server next to nothing. What concerns one node alone has the node in
its name. Each is posted after a random delay, so that a change does not have all nodes post at
once.
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
    """How much may be posted.

    `queue` Events wait at most, each for up to `spread` seconds and then for its turn: `burst` at
    once, then one every `period` seconds. One object gets `object_burst` at once, and then one
    every `object_period` seconds.
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
    """What is posted; the fields are those of events.k8s.io/v1."""

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


class _Allowance(msgspec.Struct):
    """A bucket that holds `burst` and gets one more every `period` seconds (the GCRA)."""

    burst: int
    period: float
    full_at: float = 0.0

    def wait(self, now: float) -> float:
        """Give the seconds until one may be taken."""
        return max(0.0, self.full_at - now - (self.burst - 1) * self.period)

    def take(self, now: float) -> None:
        """Take one."""
        self.full_at = max(self.full_at, now) + self.period


class EventRecorder:
    """Posts Events about Problems, as the node `node_name`.

    `record_problem` and `record_start` may be called from any thread, and before `start`.
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
        self._numbers = itertools.count()
        self._queue: list[tuple[float, int, _Event]] = []
        self._objects: dict[tuple[str, str], _Allowance] = {}
        self._overall = _Allowance(limits.burst, limits.period)
        self._said: set[str] = set()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = Worker("announcer", self._run)

    def start(self) -> None:
        """Begin to post; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what waits is dropped. May be called more than once."""
        self._stopping = True
        self._wake.set()
        self._thread.end(STOP_TIMEOUT)

    def record_problem(self, problem: Problem, uid: str = "") -> None:
        """Have a Warning posted; `uid` is the object's, empty where it is not known."""
        regarding = _regarding(problem.kind, problem.name, uid)
        if regarding is None:
            return
        local = self._node_name if problem.reason.node_specific else ""
        said = (str(problem), uid, problem.reason.value, local)
        action = f"Program{problem.kind}"
        note = f"{problem.field}: {problem.message}"
        self._put(self._event("Warning", problem.reason.value, action, note, regarding, said))

    def record_start(self) -> None:
        """Have it posted that this node's proxy starts."""
        # A Node's Events are looked up by its name in place of its uid, by old custom.
        regarding = _regarding(Kind.NODE.value, self._node_name, self._node_name)
        assert regarding is not None  # noqa: S101 (a Node can be regarded)
        said = (STARTING, datetime.now(UTC).isoformat())
        self._put(self._event("Normal", STARTING, "StartPyproxy", "", regarding, said))

    def _event(
        self,
        kind: str,
        reason: str,
        action: str,
        note: str,
        regarding: _Regarding,
        said: tuple[str, ...],
    ) -> _Event:
        digest = hashlib.sha256("\0".join(said).encode()).hexdigest()[:16]
        name = regarding.name[: _NAME_LIMIT - 1 - len(digest)].rstrip("-.")
        return _Event(
            metadata=_Metadata(f"{name}.{digest}", regarding.namespace or "default"),
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
            fits = len(self._queue) < self._limits.queue and self._may_hear_of(event, now)
            if fits:
                due = now + self._random.uniform(0, self._limits.spread)
                heapq.heappush(self._queue, (due, next(self._numbers), event))
        if fits:
            self._wake.set()
        else:
            self._metrics.event("dropped")

    def _may_hear_of(self, event: _Event, now: float) -> bool:
        key = (event.regarding.kind, f"{event.metadata.namespace}/{event.regarding.name}")
        allowance = self._objects.pop(key, None)
        if allowance is None:
            allowance = _Allowance(self._limits.object_burst, self._limits.object_period)
        self._objects[key] = allowance
        if len(self._objects) > _REMEMBERED:
            del self._objects[next(iter(self._objects))]
        if allowance.wait(now):
            return False
        allowance.take(now)
        return True

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            event, patience = self._next()
            if event is None:
                self._clock.wait(self._wake, patience)
            else:
                self._post(event)

    def _next(self) -> tuple[_Event | None, float]:
        """Take what is due, or give the seconds until something is."""
        now = self._clock.now()
        with self._lock:
            if not self._queue:
                return None, 3600.0
            patience = max(self._queue[0][0] - now, self._overall.wait(now))
            if patience > 0:
                return None, patience
            self._overall.take(now)
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
            if kind not in self._said:
                log.debug("an Event could not be posted, and is dropped: %s", error)
                self._said.add(kind)
        else:
            self._metrics.event("posted")


def _regarding(kind: str, name: str, uid: str) -> _Regarding | None:
    """Refer to an object; None for what is none of the API's."""
    api_version = _API_VERSIONS.get(kind)
    if api_version is None:
        return None
    namespace, slash, last = name.rpartition("/")
    return _Regarding(kind, api_version, last, namespace if slash else UNSET, uid or UNSET)


def _cut(text: str, limit: int) -> str:
    return text.encode()[:limit].decode(errors="ignore")
