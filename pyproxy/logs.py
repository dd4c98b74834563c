"""The format of the log: lines on stderr with time, level and message."""

from __future__ import annotations

import logging
import sys
import time

_DEBUG_VERBOSITY = 4  # klog's convention
_LIBRARIES_VERBOSITY = 6  # client-go logs each request from here on


def configure(verbosity: int) -> None:
    """Log to stderr, with pyproxy's debug lines from `--v` 4 on, and with libraries' from 6 on."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    # Replaced and not added, because a changed configuration file calls this again.
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbosity >= _LIBRARIES_VERBOSITY else logging.WARNING)
    own = logging.getLogger("pyproxy")
    own.setLevel(logging.DEBUG if verbosity >= _DEBUG_VERBOSITY else logging.INFO)
