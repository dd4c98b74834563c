"""The file of --config: its changes are applied while the rules keep serving."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from pyproxy.config.settings import Settings
from pyproxy.errors import UsageError

log = logging.getLogger(__name__)


class ConfigFile:
    """Compares the file with `settings`, which were read from it; `read` reads it again.

    It compares contents, because a kubelet swaps a symbolic link when a ConfigMap changes. A new
    content counts from the second look that finds it, because an editor may write a file in parts,
    and the first part of a file may be a valid one. An invalid content is logged once.
    """

    def __init__(self, settings: Settings, read: Callable[[], Settings]) -> None:
        self._settings = settings
        self._read = read
        self._path = Path(settings.config_file) if settings.config_file else None
        # None until the first look, because the file may have changed since `settings` were read.
        self._content: bytes | None = None
        self._last_look: bytes | None = None
        self.successor: Settings | None = None
        """The settings that replace those in force, None for no change."""

    def has_changed(self) -> bool:
        """Read the file, and return whether there is a successor now. Blocks for the file."""
        content = self._read_content()
        is_whole, self._last_look = content == self._last_look, content
        if is_whole and content is not None and content != self._content:
            self._content = content
            self.successor = self._read_successor()
        return self.successor is not None

    def _read_successor(self) -> Settings | None:
        try:
            settings = self._read()
        except UsageError as error:
            log.warning("%s; the configuration in force stays", error)
            return None
        # A remark has a line's number, which a comment above it changes.
        if msgspec.structs.replace(settings, remarks=self._settings.remarks) == self._settings:
            for remark in settings.remarks:
                if remark not in self._settings.remarks:
                    log.warning("%s", remark)
            return None
        log.info("applying the changed configuration file %s", self._path)
        return settings

    def _read_content(self) -> bytes | None:
        if self._path is None:
            return None
        try:
            return self._path.read_bytes()
        except OSError:
            # An editor replaces a file in two steps. A file that is gone changes nothing.
            return None
