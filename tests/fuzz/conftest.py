"""A namespace to commit hostile objects in."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from pyproxy.lab.namespace import Namespace, ip

NUMBERS = itertools.count()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """An empty network namespace."""
    made = Namespace(f"fuzz{os.getpid()}-{next(NUMBERS)}")
    ip([f"netns add {made.name}"])
    try:
        yield made
    finally:
        ip([f"netns del {made.name}"])
