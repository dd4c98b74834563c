"""Make network namespaces for tests."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pyproxy_lab.namespace import Namespace, ip

_NUMBERS = itertools.count()


@contextmanager
def empty_namespace(purpose: str) -> Iterator[Namespace]:
    """Make an empty namespace, whose name no other process uses."""
    made = Namespace(f"{purpose}{os.getpid()}-{next(_NUMBERS)}")
    ip([f"netns add {made.name}"])
    try:
        yield made
    finally:
        ip([f"netns del {made.name}"])
