"""How log lines look: one line each on stderr, with time, level and message."""

from __future__ import annotations

import logging
import sys
import time

_DEBUG_FROM = 4  # as klog's convention has it
_LIBRARIES_FROM = 6  # from here client-go logs each of its requests


def configure(verbosity: int) -> None:
    """Send log lines to stderr; from `--v` 4 on our own details, from 6 on the libraries' too."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbosity >= _LIBRARIES_FROM else logging.WARNING)
    own = logging.getLogger("pyproxy")
    own.setLevel(logging.DEBUG if verbosity >= _DEBUG_FROM else logging.INFO)
