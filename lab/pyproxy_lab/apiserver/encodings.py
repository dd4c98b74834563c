"""Count how many times objects would be encoded by a kube-apiserver.

The lab keeps encoded objects. A kube-apiserver encodes each object of each list and of each
streaming list again. All open watches share one encoding of a change in each format.

Facts: setCachingObjects in the cacher of k8s.io/apiserver v0.36, which wraps the changes that are
dispatched, and neither the initial events of a watch nor those that it missed.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum


class Cause(StrEnum):
    """The reason for an encoding."""

    LIST = "list"
    INITIAL = "initial event"
    MISSED = "missed change"
    CHANGE = "change"
    BOOKMARK = "bookmark"


class Encodings:
    """Counts by format, which is a media type, and by cause. Belongs to the server's thread."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, Cause]] = Counter()

    def add(self, media_type: str, cause: Cause, number: int = 1) -> None:
        """Count encodings."""
        self.counts[media_type, cause] += number
