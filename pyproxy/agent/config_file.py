"""The file of --config is followed, and a change of it taken up without a gap in the rules."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from pyproxy.config.settings import Settings
from pyproxy.errors import UsageError

log = logging.getLogger(__name__)


class ConfigFile:
    """Looks at the file that `settings` are from; `read` makes the settings of it anew.

    A kubelet swaps a symbolic link when a ConfigMap changes, and an editor may write a file in
    parts. So the content is what counts, and one that is no configuration is told of once and
    otherwise as if it were not there.
    """

    def __init__(self, settings: Settings, read: Callable[[], Settings]) -> None:
        self._settings = settings
        self._read = read
        self._path = Path(settings.config_file) if settings.config_file else None
        self._content: bytes | None = None
        """None until the first look, for the file may have changed since `settings` were read."""
        self.successor: Settings | None = None
        """The settings that are to take the place of those in force, None where none are."""

    def has_changed(self) -> bool:
        """Look again, and tell whether there is a successor now."""
        content = self._now()
        if content is not None and content != self._content:
            self._content = content
            self.successor = self._made_anew()
        return self.successor is not None

    def _made_anew(self) -> Settings | None:
        try:
            settings = self._read()
        except UsageError as error:
            log.warning("%s; the configuration in force goes on", error)
            return None
        if settings == self._settings:
            return None
        log.info("%s has changed: going on with it", self._path)
        return settings

    def _now(self) -> bytes | None:
        if self._path is None:
            return None
        try:
            return self._path.read_bytes()
        except OSError:
            # Between two files under one name; gone for good, it changes nothing either.
            return None
