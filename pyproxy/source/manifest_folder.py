"""The files of a folder of manifests: which there are, and when to look at them again."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
from watchfiles import watch

SUFFIXES = frozenset({".yaml", ".yml", ".json"})

DEBOUNCE_MS = 50
"""Milliseconds to collect changes, because editors and tools write in several steps."""

State = tuple[int, int, int, int, int]
"""A file at one time: device, inode, mtime and ctime in ns, size."""

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""Errors of a path that leads to no file; ELOOP is a link to itself."""


class FolderReplacedError(Exception):
    """The folder is no longer the one that is watched."""


class Changes(msgspec.Struct, frozen=True):
    """The manifests that changed, and whether others may have changed too."""

    files: frozenset[Path] = frozenset()
    may_be_more: bool = False


class Listing(msgspec.Struct, frozen=True):
    """The manifests in a folder, its folders, and the paths in it that cannot be examined now."""

    files: dict[Path, State]
    folders: frozenset[Path]
    unknown: frozenset[Path]

    def may_have(self, path: Path) -> bool:
        """Return whether a file exists, or may exist."""
        return path in self.files or not self.unknown.isdisjoint((path, *path.parents))


class ManifestFolder:
    """Every `.yaml`, `.yml` and `.json` file in a folder and below it, except hidden ones.

    Symbolic links are followed, since a mounted ConfigMap consists of them; those to folders only
    within the folder.
    """

    def __init__(self, path: Path) -> None:
        # Not resolved: a link in the path may be changed. Watches report absolute paths.
        self.path = path.absolute()

    def listing(self) -> Listing:
        """Return the present files. Raises OSError if the folder itself cannot be read."""
        files: dict[Path, State] = {}
        unknown: set[Path] = set()
        folders: set[Path] = set()
        visited: set[tuple[int, int]] = set()
        pending = deque([self.path])
        while pending:
            folder = pending.popleft()
            try:
                found = folder.stat()
                if (found.st_dev, found.st_ino) in visited:
                    continue
                visited.add((found.st_dev, found.st_ino))
                with os.scandir(folder) as entries:
                    names = sorted(each.name for each in entries if not each.name.startswith("."))
            except OSError as error:
                if folder == self.path:
                    raise
                if error.errno not in _GONE:
                    unknown.add(folder)
                continue
            folders.add(folder)
            for name in names:
                self._add(folder / name, files, unknown, pending)
        return Listing(files, frozenset(folders), frozenset(unknown))

    def _add(
        self, path: Path, files: dict[Path, State], unknown: set[Path], pending: deque[Path]
    ) -> None:
        try:
            found = path.stat()
        except OSError as error:
            if error.errno not in _GONE:
                unknown.add(path)
            return
        if stat.S_ISDIR(found.st_mode):
            if not path.is_symlink() or path.resolve().is_relative_to(self.path.resolve()):
                pending.append(path)
        elif stat.S_ISREG(found.st_mode) and path.suffix in SUFFIXES:
            files[path] = _state(found)

    def changes(self, stopping: threading.Event) -> Iterator[Changes]:
        """Yield changes, also empty ones now and then; the first once the folder is watched.

        A changed path that is not a manifest may affect many: a folder that was moved, or the
        hidden link by which a mounted ConfigMap replaces its files. Ends after `stopping`. Raises
        OSError, FolderReplacedError.
        """
        watched = self._identity()
        while not stopping.is_set():
            folders = self.listing().folders
            with closing(self._watch(folders, stopping)) as batches:
                for count, paths in enumerate(batches):
                    # A new folder may have the inode number of the one that was deleted.
                    if self.path in paths or self._identity() != watched:
                        raise FolderReplacedError
                    files = frozenset(filter(self._is_manifest, paths))
                    # The watch begins just before its first element.
                    yield Changes(files, may_be_more=count == 0 or files != paths)
                    # New folders, and those that a changed link leads to, need a watch.
                    if any(path in folders or os.path.isdir(path) for path in paths):
                        break

    def _watch(
        self, folders: frozenset[Path], stopping: threading.Event
    ) -> Generator[frozenset[Path]]:
        try:
            for found in watch(
                *folders,
                # Otherwise the watch would follow links to anywhere.
                recursive=False,
                stop_event=stopping,
                debounce=DEBOUNCE_MS,
                step=DEBOUNCE_MS,
                rust_timeout=2 * DEBOUNCE_MS,
                # Also without changes, because the watch is silent about another folder of its
                # name.
                yield_on_timeout=True,
                watch_filter=None,
                ignore_permission_denied=True,
            ):
                yield frozenset(Path(path) for _, path in found)
        except RuntimeError as error:
            # WatchfilesRustInternalError, such as EMFILE of inotify_init.
            raise OSError(str(error)) from error

    def _identity(self) -> tuple[int, int]:
        """Return what tells the folder from others that exist at the same time. Raises OSError."""
        found = self.path.stat()
        return found.st_dev, found.st_ino

    def _is_manifest(self, path: Path) -> bool:
        """Return whether a path is a manifest, not an editor's swap file or in a hidden folder."""
        if path.suffix not in SUFFIXES or not path.is_relative_to(self.path):
            return False
        return not any(part.startswith(".") for part in path.relative_to(self.path).parts)


def file_state(path: Path) -> State | None:
    """Return the state of a regular file, None for none. Raises OSError if that is unknown."""
    try:
        found = path.stat()
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    return _state(found) if stat.S_ISREG(found.st_mode) else None


def _state(found: os.stat_result) -> State:
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
