"""Certificates and keys as files, because the TLS library reads a client certificate from no bytes.

A kubeconfig has them as paths or in base64. The latter become temporary files of this process, with
mode 0600, which are removed when it exits, or when newer ones have replaced them.
"""

from __future__ import annotations

import atexit
import base64
import os
import tempfile
import threading
from contextlib import suppress

from pyproxy.errors import UsageError

_MOST_FILES = 32
"""Files at one time. A plugin that issues certificates brings two every few minutes, for ever."""

_lock = threading.Lock()
# By content: credentials that are read again and are the same get the same file.
_written: dict[bytes, str] = {}


def tls_file(path: str | None, data: str | None) -> str:
    """Return the path of a certificate or key given as a path or in base64; empty for none.

    `data` takes precedence over `path`, as in client-go. Raises UsageError for a path that is no
    file, ValueError for data that are not base64, and OSError.
    """
    if data:
        return _file_with(base64.b64decode(data, validate=False))
    if path and not os.path.isfile(path):
        raise UsageError(f"file does not exist: {os.path.normpath(path)}")
    return path or ""


def _file_with(content: bytes) -> str:
    with _lock:
        path = _written.pop(content, None)
        # A program that cleans /tmp may have removed it.
        if path is None or not os.path.isfile(path):
            descriptor, path = tempfile.mkstemp(prefix="pyproxy-")
            with open(descriptor, "wb") as file:
                file.write(content)
        _written[content] = path  # the last one to be removed now
        while len(_written) > _MOST_FILES:
            _unlink(_written.pop(next(iter(_written))))
        return path


@atexit.register
def _remove() -> None:
    for path in _written.values():
        _unlink(path)
    _written.clear()


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
