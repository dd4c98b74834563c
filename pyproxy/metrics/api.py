"""Metrics of requests to the API server, under client-go's names, and of the Events among them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_DURATION_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60)
_SIZE_BUCKETS = (64, 256, 512, *(1024 * 4**power for power in range(8)))
_BY_HOST_AND_VERB = ("host", "verb")


class ApiMetrics:
    """Metrics of requests by method and by host, which has the port if the URL has one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "rest_client_requests_total",
            "Requests to the API server",
            ("code", "host", "method"),
            registry=registry,
        )
        self._duration = Histogram(
            "rest_client_request_duration_seconds",
            "Time from a request to the API server to the head of its response",
            _BY_HOST_AND_VERB,
            buckets=_DURATION_BUCKETS,
            registry=registry,
        )
        self._request_size = Histogram(
            "rest_client_request_size_bytes",
            "Bytes of the body of a request to the API server",
            _BY_HOST_AND_VERB,
            buckets=_SIZE_BUCKETS,
            registry=registry,
        )
        self._response_size = Histogram(
            "rest_client_response_size_bytes",
            "Decompressed bytes of the body of a response of the API server, without watches and "
            "errors",
            _BY_HOST_AND_VERB,
            buckets=_SIZE_BUCKETS,
            registry=registry,
        )
        self._events = Counter(
            "pyproxy_events_total",
            "Events by outcome: posted, known (another node was first), refused by the API server "
            "or after 12 attempts to reach it, or dropped because there were too many",
            ("outcome",),
            registry=registry,
        )

    def count_request(self, method: str, host: str, code: str) -> None:
        """Count a request to the API server; `code` is the HTTP status, or `<error>`."""
        self._requests.labels(code, host, method).inc()

    def observe_request(self, method: str, host: str, duration: float, size: int) -> None:
        """Record the bytes of a request's body, and the time up to the head of its response."""
        self._duration.labels(host, method).observe(duration)
        self._request_size.labels(host, method).observe(size)

    def observe_response(self, method: str, host: str, size: int) -> None:
        """Record the decompressed bytes of a response that was read to its end."""
        # client-go records none of a watch either, and its size too is that of what it decodes.
        self._response_size.labels(host, method).observe(size)

    def event(self, outcome: str) -> None:
        """Count an Event: `posted`, `known`, `refused` or `dropped`."""
        self._events.labels(outcome).inc()
