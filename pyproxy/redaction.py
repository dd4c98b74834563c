"""Keep credentials out of every text that leaves the process.

Messages are made without credentials in the first place. `KNOWN` is the second line: the log and
the client pass their texts through it, because libraries and servers repeat what they were sent.
"""

from __future__ import annotations

import re
import threading

MASK = "[redacted]"

_SHORTEST = 12
"""Characters; a shorter value may be an ordinary word, and is no strong credential."""

_REMEMBERED = 64
"""Credentials that are remembered; tokens are replaced every few minutes."""

# With / and the like, because people forget to encode them; but not across the URLs of a list.
_USERINFO = re.compile(r"(?<=//)(?:(?!,\w+://)[^\s'\"]){0,512}@")
_NEXT_URL = re.compile(r",(?=\s*\w+://)")
_WHOLE_USERINFO = re.compile(r"(?<=//).*@", re.DOTALL)


class Redactor:
    """Replaces known credentials in texts. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, None] = {}

    def remember(self, *credentials: str) -> None:
        """Replace these values in all later texts."""
        with self._lock:
            for value in credentials:
                if len(value) >= _SHORTEST:
                    self._known.pop(value, None)
                    self._known[value] = None
            while len(self._known) > _REMEMBERED:
                del self._known[next(iter(self._known))]

    def redact(self, text: str) -> str:
        """Return a text without known credentials and without the userinfo of URLs."""
        with self._lock:
            known = list(self._known)
        # The longest first, because a header's value contains the token.
        for value in sorted(known, key=len, reverse=True):
            text = text.replace(value, MASK)
        return without_userinfo(text)


KNOWN = Redactor()
"""The credentials that this process has read."""


def without_userinfo(text: str) -> str:
    """Return a text in which no URL has a user and a password."""
    return _USERINFO.sub("", text) if "@" in text else text


def bare_urls(text: str) -> str:
    """Return URLs, separated by commas, without users and passwords of any characters."""
    return ",".join(_WHOLE_USERINFO.sub("", each) for each in _NEXT_URL.split(text))
