"""A plain HTTP client for tests of the API server: it hides no status and no byte."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import urllib3

Json = Any
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
SERVICES = "/api/v1/namespaces/default/services"
PODS = "/api/v1/namespaces/default/pods"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
DEADLINE = 60.0


@dataclass(frozen=True)
class Response:
    status: int
    headers: urllib3.HTTPHeaderDict
    raw: bytes

    @property
    def body(self) -> Json:
        return json.loads(self.raw)


class Api:
    def __init__(self, url: str, token: str = "") -> None:
        self.url = url
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.http = urllib3.PoolManager(maxsize=16)

    def __call__(
        self, method: str, path: str, body: Json = None, content_type: str = "", **headers: str
    ) -> Response:
        sent = {**self.headers, **headers}
        if body is not None:
            sent["Content-Type"] = content_type or "application/json"
        raw = None if body is None else json.dumps(body)
        response = self.http.request(method, self.url + path, body=raw, headers=sent)
        return Response(response.status, response.headers, response.data)

    def ok(self, method: str, path: str, body: Json = None, content_type: str = "") -> Json:
        response = self(method, path, body, content_type)
        assert response.status in {200, 201}, response.raw
        return response.body

    @contextmanager
    def watch(self, path: str) -> Iterator[Watch]:
        response = self.http.request(
            "GET", self.url + path, headers=self.headers, preload_content=False
        )
        watch = Watch(response)
        try:
            yield watch
        finally:
            watch.close()


@dataclass
class Watch:
    """Reads a watch in a thread; `events` grows until the server ends it."""

    response: urllib3.BaseHTTPResponse
    events: list[Json] = field(default_factory=list)
    ended: bool = False

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def until(self, holds: Callable[[list[Json]], bool]) -> list[Json]:
        """Wait until the events so far are as they should be, and give them."""
        with self._changed:
            reached = self._changed.wait_for(lambda: holds(self.events), DEADLINE)
            assert reached, (len(self.events), self.events[-20:])
            return list(self.events)

    def until_ended(self) -> list[Json]:
        with self._changed:
            assert self._changed.wait_for(lambda: self.ended, DEADLINE), self.events
            return list(self.events)

    def close(self) -> None:
        # Shutting the socket down wakes the reader, which a mere close would not.
        with suppress(RuntimeError):  # The server has ended the watch already.
            self.response.shutdown()
        self._thread.join(DEADLINE)
        self.response.close()

    def _read(self) -> None:
        rest = b""
        try:
            for chunk in self.response.stream(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                with self._changed:
                    self.events += [json.loads(line) for line in lines]
                    self._changed.notify_all()
        except (urllib3.exceptions.HTTPError, OSError, ValueError):
            pass  # The test has closed it.
        with self._changed:
            self.ended = True
            self._changed.notify_all()


def eventually(holds: Callable[[], Any]) -> Any:
    """Wait until something is true, and give it."""
    deadline = time.monotonic() + DEADLINE
    while not (found := holds()):
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.01)
    return found


def brief(events: list[Json]) -> list[tuple[str, str]]:
    """Return the type and the name of each event, without bookmarks."""
    return [(e["type"], e["object"]["metadata"]["name"]) for e in events if e["type"] != "BOOKMARK"]


def service(name: str, **spec: Json) -> Json:
    return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], **spec}}


def endpoint_slice(name: str, *addresses: str) -> Json:
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080}],
        "endpoints": [{"addresses": [address]} for address in addresses],
    }
