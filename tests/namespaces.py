"""Make network namespaces for tests."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pyproxy_lab.namespace import Namespace, ip, make_namespaces

_NUMBERS = itertools.count()


@contextmanager
def empty_namespace(purpose: str) -> Iterator[Namespace]:
    """Make an empty namespace with a unique name, and remove it at the end."""
    made = Namespace(f"{purpose}{os.getpid()}-{next(_NUMBERS)}")
    # It would inherit ip_forward from the machine.
    make_namespaces([made.name], {"ipv4/ip_forward": 0})
    try:
        yield made
    finally:
        ip([f"netns del {made.name}"])
