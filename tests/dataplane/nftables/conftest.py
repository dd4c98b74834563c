"""Namespaces to program."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from pyproxy.lab.namespace import Namespace, ip

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    """An empty network namespace, for a module's tests to use in turn."""
    made = Namespace(f"nft{os.getpid()}-{next(NUMBERS)}")
    ip([f"netns add {made.name}"])
    try:
        yield made
    finally:
        ip([f"netns del {made.name}"])
