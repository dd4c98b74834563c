"""The file of --config: its changes are applied while the rules keep serving."""

from __future__ import annotations

import errno
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from pyproxy.backoff import Backoff
from pyproxy.config.settings import Settings
from pyproxy.errors import UsageError
from pyproxy.model.config_problems import ConfigProblem, ConfigTopic
from pyproxy.source.files import UnreadableFileError, read_file

log = logging.getLogger(__name__)

_LARGEST = 2**20
"""Bytes of a file; `read` reports a larger one as a mistake."""

FIRST_RETRY = 2.0
"""Seconds until an invalid content is read again; the agent looks every 2 s."""

LONGEST_RETRY = 30.0
"""The longest pause in seconds. Reading a file with many mistakes delays syncs."""

_FIX = "correct the file: it is read again at each change, and every 30 s"


class ConfigFile:
    """Compares the file with `settings`, which were read from it; `read` reads it again.

    It compares contents, because a kubelet swaps a symbolic link when a ConfigMap changes. A new
    content counts from the second look that finds it, because an editor may write a file in parts,
    and the first part of a file may be a valid one. An invalid content is logged once. It is read
    again from time to time, because the error may be in another file, as in a kubeconfig that is
    written a moment later. `clock` returns monotonic seconds.
    """

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._read = read
        self._clock = clock
        self._retries = Backoff(FIRST_RETRY, LONGEST_RETRY)
        self._retry_at = math.inf
        self._error = ""
        self._path = Path(settings.config_file) if settings.config_file else None
        # None until the first look, because the file may have changed since `settings` were read.
        self._content: bytes | None = None
        self._last_look: bytes | None = None
        self.successor: Settings | None = None
        """The settings that replace those in force, None for no change."""
        self._problems = file_problems(settings.file_warnings)

    def problems(self) -> tuple[ConfigProblem, ...]:
        """Return the mistakes in the last content. They are logged already. Any thread."""
        return self._problems

    def has_changed(self) -> bool:
        """Read the file, and return whether there is a successor now. Blocks for the file."""
        content = self._read_content()
        is_whole, self._last_look = content == self._last_look, content
        if is_whole and content is not None:
            if content != self._content:
                self._content, self._error = content, ""
                self._retries.reset()
                self.successor = self._read_successor()
            elif self._clock() >= self._retry_at:
                self.successor = self._read_successor()
        return self.successor is not None

    def _read_successor(self) -> Settings | None:
        try:
            settings = self._read()
        except UsageError as error:
            self._note_error(f"{error}; the configuration in force stays")
            return None
        self._retry_at = math.inf
        self._problems = file_problems(settings.file_warnings)
        # A remark has a line's number, which a comment above it changes.
        same = msgspec.structs.replace(
            settings,
            remarks=self._settings.remarks,
            file_warnings=self._settings.file_warnings,
        )
        if same == self._settings:
            for remark in settings.remarks:
                if remark not in self._settings.remarks:
                    log.warning("%s", remark)
            return None
        log.info("applying the changed configuration file %s", self._path)
        return settings

    def _note_error(self, text: str) -> None:
        if text != self._error:
            log.warning("%s", text)
        self._error = text
        self._problems = file_problems((text,))
        self._retry_at = self._clock() + self._retries.next()

    def _read_content(self) -> bytes | None:
        if self._path is None:
            return None
        try:
            # A pipe, as of a shell's <(...), would block.
            return read_file(self._path, _LARGEST)
        except UnreadableFileError as error:
            return b"too large" if error.errno == errno.EFBIG else None
        except OSError:
            # An editor replaces a file in two steps. A file that is gone changes nothing.
            return None


def file_problems(texts: tuple[str, ...]) -> tuple[ConfigProblem, ...]:
    """Return a problem for each warning about the file."""
    return tuple(ConfigProblem(ConfigTopic.CONFIG_FILE, text, _FIX) for text in texts)
