"""The log: lines of text or JSON on stderr, with time, level and message, a bounded number.

Tenants decide how often an object changes, and write parts of the messages. So lines about one
object are limited, and so are lines of one kind, and each is one line of printable characters. A
caller names the object with `extra=about(...)`. Suppressed lines are counted, and the next line of
their object or kind has their number.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping

import msgspec

from pyproxy.errors import one_line
from pyproxy.rate_limits import BucketTable, Rate
from pyproxy.redaction import KNOWN

log = logging.getLogger(__name__)

_DEBUG_VERBOSITY = 4  # klog's convention
_LIBRARIES_VERBOSITY = 6  # client-go logs each request from here on

_PER_OBJECT = Rate(5, 60.0)
_PER_KIND = Rate(100, 1.0)
_OBJECTS = 4096
_KINDS = 512
_SUBJECT_LIMIT = 400
_LINE_LIMIT = 2048
_TRACEBACK_LIMIT = 16_384
_REPORT_PERIOD = 60.0


def about(kind: str, name: object) -> Mapping[str, object]:
    """Return the `extra` of a log line about one object, such as a Service and its name."""
    return {"subject": one_line(f"{kind} {name}", _SUBJECT_LIMIT)}


class LineLimiter(logging.Filter):
    """Suppresses lines beyond the rates of their object and of their kind.

    The kind of a line is its format. Debug lines are not limited, because an operator asked for
    them. May be called from any thread.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._objects = BucketTable(_PER_OBJECT, _OBJECTS)
        self._kinds = BucketTable(_PER_KIND, _KINDS)
        self._reported = 0
        self._next_report = 0.0
        self.suppressed = 0
        """Lines suppressed so far."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is within its rates; add the number of those before it."""
        if record.levelno <= logging.DEBUG:
            return True
        now = self._clock()
        with self._lock:
            buckets = [self._kinds.bucket((record.name, record.msg))]
            subject = getattr(record, "subject", None)
            if subject is not None:
                # First, so that one object does not use up the lines of all others.
                buckets.insert(0, self._objects.bucket(subject))
            full = next((bucket for bucket in buckets if bucket.wait(now)), None)
            if full is not None:
                full.suppressed += 1
                self.suppressed += 1
                return False
            before = sum(bucket.suppressed for bucket in buckets)
            for bucket in buckets:
                bucket.take(now)
                bucket.suppressed = 0
        if before:
            record.suppressed = before
        return True

    def report(self) -> None:
        """Log the number of lines suppressed since the last report, at most once a minute.

        Without it, lines would be missing silently if no further line of their object follows.
        """
        now = self._clock()
        with self._lock:
            count = self.suppressed - self._reported
            if not count or now < self._next_report:
                return
            self._reported = self.suppressed
            self._next_report = now + _REPORT_PERIOD
        log.warning("suppressed %d similar lines; pyproxy status names all invalid objects", count)


class OneLineFormatter(logging.Formatter):
    """Formats each record as one line; the lines of a traceback are indented.

    So no text of an object can end a line and begin another that looks like pyproxy's own. Known
    credentials are masked, because libraries repeat what they were given.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, with its traceback if it has one."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        message = one_line(record.getMessage(), _LINE_LIMIT)
        count = getattr(record, "suppressed", 0)
        if count:
            message = f"{message} ({count:,} similar lines suppressed)"
        lines = [f"{at}.{int(record.msecs):03d}Z {record.levelname:<7} {message}"]
        if record.exc_info:
            traceback = self.formatException(record.exc_info)[-_TRACEBACK_LIMIT:]
            lines += [f"    {one_line(line, _LINE_LIMIT)}" for line in traceback.split("\n")]
        return KNOWN.redact("\n".join(lines))


class JsonFormatter(logging.Formatter):
    """Formats each record as one JSON object with the names that kube-proxy uses.

    These are `ts` in milliseconds, `caller`, `msg`, `v` for all but errors, and `err`. `level`,
    `object`, `suppressed` and `stacktrace` are pyproxy's own. Facts: component-base's logs/json.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, in which known credentials are masked."""
        file = record.pathname.rsplit("/", 2)[-2:]
        fields: dict[str, object] = {
            "ts": record.created * 1000,
            "caller": f"{'/'.join(file)}:{record.lineno}",
            "msg": _masked(record.getMessage()),
            "level": record.levelname.lower(),
        }
        if record.levelno < logging.ERROR:
            fields["v"] = 0 if record.levelno > logging.DEBUG else _DEBUG_VERBOSITY
        if subject := getattr(record, "subject", None):
            fields["object"] = _masked(subject)
        if count := getattr(record, "suppressed", 0):
            fields["suppressed"] = count
        if record.exc_info and record.exc_info[1] is not None:
            fields["err"] = _masked(repr(record.exc_info[1]))
            traceback = self.formatException(record.exc_info)[-_TRACEBACK_LIMIT:]
            fields["stacktrace"] = "\n".join(map(_masked, traceback.split("\n")))
        return msgspec.json.encode(fields).decode()


def _masked(text: str) -> str:
    # Masked before JSON's escapes, which could hide a credential.
    return KNOWN.redact(one_line(text, _LINE_LIMIT))


_FORMATTERS: Mapping[str, type[logging.Formatter]] = {
    "text": OneLineFormatter,
    "json": JsonFormatter,
}

LIMITER = LineLimiter(time.monotonic)
"""The limiter of this process. A changed configuration file does not reset it."""


def configure(verbosity: int, log_format: str = "text") -> None:
    """Log to stderr in a format of --logging-format.

    pyproxy's debug lines are logged from `--v` 4 on, and those of libraries from 6 on.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FORMATTERS[log_format]())
    handler.addFilter(LIMITER)
    # Replaced and not added, because a changed configuration file calls this again.
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbosity >= _LIBRARIES_VERBOSITY else logging.WARNING)
    own = logging.getLogger("pyproxy")
    own.setLevel(logging.DEBUG if verbosity >= _DEBUG_VERBOSITY else logging.INFO)
