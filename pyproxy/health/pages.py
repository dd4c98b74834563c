"""The pages of the health address and the metrics address, as in kube-proxy v1.36."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Mapping

import msgspec

from pyproxy import __version__
from pyproxy.config import report as config_report
from pyproxy.config.settings import Settings
from pyproxy.health.messages import Handler, Request, Response, Slow
from pyproxy.health.slow import Recent
from pyproxy.health.state import Health, HealthReport
from pyproxy.metrics import CONTENT_TYPE, Metrics
from pyproxy.model.address import Family

_JSON = "application/json"
_NO_SNIFF = (("X-Content-Type-Options", "nosniff"),)
_EXPOSITION_REUSE = 10.0
"""How long metrics are current, as a multiple of the CPU time for them: a few milliseconds."""


class _FamilyStatus(msgspec.Struct, rename="camel"):
    last_updated: str
    healthy: bool


class _Status(msgspec.Struct, rename="camel"):
    last_updated: str
    current_time: str
    node_eligible: bool | msgspec.UnsetType
    healthy: bool
    status: dict[str, _FamilyStatus]


def health_pages(health: Health, metrics: Metrics) -> Handler:
    """Return the handler of /healthz and /livez.

    /healthz also fails while the agent shuts down and while the Node is being removed (KEP-3836).
    /livez does not, because a restart after a failed liveness probe would not help.
    """

    def healthz(report: HealthReport) -> Response:
        passed = report.healthy and report.node_eligible and not report.shutting_down
        response = _health(report, passed, report.node_eligible)
        metrics.process.healthz_answered(response.status)
        return response

    def livez(report: HealthReport) -> Response:
        # UNSET leaves nodeEligible out of the JSON, as in kube-proxy.
        response = _health(report, report.healthy, msgspec.UNSET)
        metrics.process.livez_answered(response.status)
        return response

    return _pages(
        {
            "/healthz": lambda: healthz(health.report()),
            "/livez": lambda: livez(health.report()),
        }
    )


def metrics_pages(
    settings: Settings, metrics: Metrics, started: float, clock: Callable[[], float]
) -> Handler:
    """Return the handler of /metrics and of the pages about this process.

    `started` and `clock` are in seconds since the epoch.
    """
    exposition = Recent(metrics.exposition, _EXPOSITION_REUSE)
    # Neither changes, so that a flood of requests encodes nothing.
    configz = Response(config_report.configz(settings), 200, _JSON, _NO_SNIFF)
    flagz = _text(config_report.flagz(settings))

    def scrape() -> Response:
        return Response(exposition.get(), content_type=CONTENT_TYPE)

    pages: dict[str, Callable[[], Response | Slow]] = {
        "/configz": lambda: configz,
        "/flagz": lambda: flagz,
        # The metrics address has kube-proxy's constant page, not that of the health address.
        "/healthz": lambda: _text("ok"),
        # Reads the kernel and encodes all series, which takes too long for the server's thread.
        "/metrics": lambda: scrape,
        "/proxyMode": lambda: _text(settings.mode.value),
        "/statusz": lambda: _text(_statusz(started, clock(), sorted(pages))),
    }
    return _pages(pages)


def _pages(pages: Mapping[str, Callable[[], Response | Slow]]) -> Handler:
    def respond(request: Request) -> Response | Slow:
        page = pages.get(request.path)
        return page() if page else Response(b"404 page not found\n", 404, headers=_NO_SNIFF)

    return respond


def _text(text: str) -> Response:
    return Response(text.encode(), headers=_NO_SNIFF)


def _health(
    report: HealthReport, passed: bool, node_eligible: bool | msgspec.UnsetType
) -> Response:
    now = rfc3339(report.now)
    updated = rfc3339(report.last_updated)
    # Without pending changes the proxy is up to date now, however old its last commit is.
    family = _FamilyStatus(now if report.healthy and report.settled else updated, report.healthy)
    status = _Status(
        last_updated=now if passed else updated,
        current_time=now,
        node_eligible=node_eligible,
        healthy=passed,
        status={label.label: family for label in Family},
    )
    return Response(msgspec.json.encode(status), 200 if passed else 503, _JSON, _NO_SNIFF)


def rfc3339(nanoseconds: int) -> str:
    """Format nanoseconds since the epoch as Go does, in UTC; 0 is Go's zero time."""
    if not nanoseconds:
        return "0001-01-01T00:00:00Z"
    seconds, rest = divmod(nanoseconds, 10**9)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def _statusz(started: float, now: float, paths: list[str]) -> str:
    minutes, seconds = divmod(int(now - started), 60)
    hours, minutes = divmod(minutes, 60)
    return "\n".join(
        (
            "pyproxy statusz",
            "For people: the form of this page may change.",
            "",
            f"Started: {rfc3339(int(started) * 10**9)}",
            f"Up: {hours} hr {minutes:02d} min {seconds:02d} sec",
            f"Python version: {platform.python_version()}",
            f"Binary version: {__version__}",
            "",
            f"Paths: {' '.join(paths)}",
            "",
        )
    )
