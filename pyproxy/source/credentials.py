"""Credentials of requests: tokens, token files, user and password.

A token is trimmed, as client-go trims the content of a token file. An error names the file or the
field and never contains a value. Facts: transport/token_source.go of client-go v0.36.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from pyproxy.errors import SourceError
from pyproxy.redaction import KNOWN
from pyproxy.source.files import read_file

log = logging.getLogger(__name__)

REREAD = 50.0
"""Seconds after which a token file is read again; client-go's minute less its leeway."""

LARGEST_TOKEN = 1 << 16
"""Bytes of a token; Go's servers accept 1 MiB for all headers of a request."""


class CredentialError(SourceError):
    """A credential cannot be used now; the message names its file or field, without the value."""


class Credentials(Protocol):
    """The source of the Authorization header."""

    @property
    def is_outdated(self) -> bool:
        """Whether the credentials must be loaded as a whole again. Never blocks."""
        ...

    def authorization(self) -> str:
        """Return the value of the header, empty for none.

        May block: it reads a file or runs a program. Thread-safe. Raises CredentialError.
        """
        ...


class StaticCredentials:
    """A header that does not change, by default none."""

    is_outdated = False

    def __init__(self, header: str = "") -> None:
        self._header = header

    def authorization(self) -> str:
        """Return the header; never blocks and raises nothing."""
        return self._header


class TokenFile:
    """A token in a file that is replaced from time to time, as the kubelet does.

    `where` is how messages name the file. `fallback` is a token to use while the file has never
    been legible, empty for none.
    """

    is_outdated = False

    def __init__(
        self,
        path: str,
        where: str,
        fallback: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._where = where
        self._clock = clock
        self._lock = threading.Lock()
        self._header = bearer(fallback, where) if fallback else ""
        self._read_at: float | None = None
        self._logged = ""

    def authorization(self) -> str:
        """Return the header, from the file if it was not read recently."""
        with self._lock:
            now = self._clock()
            if self._read_at is None or now - self._read_at >= REREAD or not self._header:
                self._read(now)
            return self._header

    def _read(self, now: float) -> None:
        try:
            data = read_file(self._path, LARGEST_TOKEN)
            self._header = bearer(data.decode(errors="replace"), self._where)
        except (OSError, CredentialError) as error:
            reason = f"{self._where}: {error.strerror}" if isinstance(error, OSError) else error
            if not self._header:
                raise CredentialError(str(reason)) from None
            # The file may be in the middle of a replacement; the old token may still work.
            if str(reason) != self._logged:
                log.warning("cannot read the token again, using the previous one: %s", reason)
            self._logged = str(reason)
        else:
            self._logged = ""
        self._read_at = now


def bearer(token: str, where: str) -> str:
    """Return the header for a token, without white space around it. Raises CredentialError."""
    trimmed = token.strip()
    if not trimmed:
        raise CredentialError(f"{where}: the token is empty")
    if len(trimmed) > LARGEST_TOKEN:
        raise CredentialError(f"{where}: the token is longer than {LARGEST_TOKEN} characters")
    KNOWN.remember(trimmed)
    for position, character in enumerate(trimmed, 1):
        if not "!" <= character <= "~":
            raise CredentialError(
                f"{where}: character {position} of {len(trimmed)} of the token cannot be in an "
                "HTTP header: write printable ASCII characters without spaces"
            )
    return f"Bearer {trimmed}"


def basic(user: str, password: str) -> str:
    """Return the header for a user and a password."""
    encoded = base64.b64encode(f"{user}:{password}".encode(errors="surrogatepass")).decode()
    KNOWN.remember(password, encoded)
    return f"Basic {encoded}"
