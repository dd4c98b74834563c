"""Services, EndpointSlices and the Node from a folder of manifests, without an API server.

A file may have several documents and Lists. The folder is watched, and only changed files are read
again. The states of all files are compared now and then too. A watch misses a file in a folder that
is too new to be watched, and the target of a link to another folder.

While a file does not parse, its previous objects stay in use. If several files define the same
object, the first file in the order of paths wins.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from pyproxy.errors import Problem, UsageError
from pyproxy.model.config_problems import ConfigProblem
from pyproxy.model.events import Delete, Event, InvalidObject, Synced, Upsert
from pyproxy.model.objects import Kind, ObjectName
from pyproxy.source import documents
from pyproxy.source.decode import DecodedObject, NotProxied, decode_object
from pyproxy.source.manifest_folder import (
    FolderReplacedError,
    ManifestFolder,
    State,
    file_state,
)
from pyproxy.source.retry import Clock, SystemClock
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

DEFAULT_NAMESPACE = "default"
STOP_TIMEOUT = 1.0
"""Seconds that `stop` waits for the thread."""

REREAD = 5.0
"""Seconds between comparisons of all files; changes of a folder that is not watched wait for it."""

GRACE = 1.0
"""Seconds that the objects of a folder that does not exist stay in use: it may be replaced."""

_POLL = 0.1
"""Seconds between looks for a folder that does not exist."""

_KINDS = {
    ("v1", "Service"): Kind.SERVICE,
    ("discovery.k8s.io/v1", "EndpointSlice"): Kind.ENDPOINT_SLICE,
    ("v1", "Node"): Kind.NODE,
}

_Key = tuple[Kind, ObjectName]


class _File(msgspec.Struct):
    """The objects in a file, its problems, and its state before it was read.

    The state is None for a file that could not be read, which is then tried again.
    """

    state: State | None = None
    objects: dict[_Key, DecodedObject] = msgspec.field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


class ManifestSource:
    """Reads and watches a folder in a thread of its own, which calls `emit`.

    Raises UsageError if the folder does not exist.
    """

    def __init__(
        self,
        folder: Path,
        hostname: str,
        emit: Callable[[Event], None],
        *,
        clock: Clock | None = None,
    ) -> None:
        if not folder.is_dir():
            reason = "is not a folder" if folder.exists() else "does not exist"
            raise UsageError(f"--manifests {folder}: {reason}")
        self._folder = ManifestFolder(folder)
        self._node = ObjectName("", hostname)
        self._emit = emit
        self._clock = clock or SystemClock()
        self._files: dict[Path, _File] = {}
        self._known: dict[_Key, DecodedObject] = {}
        self._problems: frozenset[Problem] = frozenset()
        self._stopping = threading.Event()
        self._last_look = self._clock.now()
        self._compared_at = self._last_look
        self._has_synced = False
        self._is_watched = True
        self._thread = Worker("source-manifests", self._run)

    def node_names(self) -> tuple[str, ...]:
        """Return nothing: a folder need not have a Node."""
        return ()

    def problems(self) -> tuple[ConfigProblem, ...]:
        """Return nothing: a folder needs no requests."""
        return ()

    def start(self) -> None:
        """Start the thread; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Blocks for a second at most; idempotent; may be called before `start`."""
        self._stopping.set()
        self._thread.end(STOP_TIMEOUT)

    def age(self) -> float:
        """Return the seconds since the folder was last checked for changes."""
        return self._clock.now() - self._last_look

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow()
            except FolderReplacedError:
                log.info("%s was replaced, reading it again", self._folder.path)
            except (FileNotFoundError, NotADirectoryError):
                self._await_folder()
            except OSError as error:
                # Such as the limits of inotify.
                self._follow_without_watch(error)

    def _follow(self) -> None:
        """Read the folder and its changes until the source stops.

        Raises OSError, FolderReplacedError.
        """
        for changes in self._folder.changes(self._stopping):
            now = self._last_look = self._clock.now()
            if changes.may_be_more or now - self._compared_at >= REREAD:
                self._compare(changes.files)
            elif changes.files:
                self._read(changes.files, ())
            if not self._is_watched:
                log.info("watching %s again", self._folder.path)
                self._is_watched = True

    def _follow_without_watch(self, error: OSError) -> None:
        """Read the folder once, and wait until it is time to read it again."""
        path = self._folder.path
        if self._is_watched:
            log.warning("cannot watch %s, reading it every %.0f s: %s", path, REREAD, error)
        self._is_watched = False
        try:
            self._compare(())
        except OSError as failed:
            log.debug("cannot read %s: %s", path, failed)
        self._clock.wait(self._stopping, REREAD)

    def _await_folder(self) -> None:
        """Wait for a folder that does not exist; after some time, its objects are gone too."""
        path, began = self._folder.path, self._clock.now()
        is_gone = False
        while not (self._stopping.is_set() or os.path.isdir(path)):
            self._last_look = self._clock.now()
            if not is_gone and self._last_look - began >= GRACE:
                is_gone = True
                log.warning("%s does not exist any more; removing its objects", path)
                self._read((), tuple(self._files))
                self._complete()
            self._clock.wait(self._stopping, _POLL)
        if is_gone and not self._stopping.is_set():
            log.info("%s exists again, reading it", path)

    def _compare(self, changed: Iterable[Path]) -> None:
        """Read the files whose state differs, and those that are known to have changed.

        Raises OSError if the folder cannot be read; then all objects stay in use.
        """
        listing = self._folder.listing()
        self._last_look = self._compared_at = self._clock.now()
        known = {path: file.state for path, file in self._files.items()}
        differing = {path for path, state in listing.files.items() if known.get(path) != state}
        gone = {path for path in known if not listing.may_have(path)}
        if differing or gone or changed:
            self._read(differing.union(changed), gone)
        self._complete()

    def _read(self, changed: Iterable[Path], gone: Iterable[Path]) -> None:
        """Read files again and emit the differences."""
        for path in gone:
            del self._files[path]
        for path in changed:
            try:
                state = file_state(path)
            except OSError as error:
                log.debug("cannot examine %s: %s", path, error)
                continue
            if state is None:
                self._files.pop(path, None)
            else:
                self._files[path] = self._load(path, state)
        self._emit_changes(*self._merged())

    def _complete(self) -> None:
        """Emit Synced after the first reading."""
        for kind in () if self._has_synced else Kind:
            names = frozenset(name for known, name in self._known if known is kind)
            invalid = frozenset(
                problem.name for problem in self._problems if problem.kind == kind.value
            )
            self._emit(Synced(kind, names, invalid))
        self._has_synced = True

    def _load(self, path: Path, state: State) -> _File:
        """Read one file; if it does not parse, keep its previous objects and add a problem."""
        seen: State | None = state
        try:
            objects, problems = self._parsed(path)
            return _File(seen, objects, problems)
        except documents.UNREADABLE as error:
            message = documents.error_text(error)
            if isinstance(error, OSError):
                seen = None
        before = self._files.get(path, _File())
        problem = Problem(
            "File", str(path), "content", f"{message}; its previous objects stay in use"
        )
        return _File(seen, before.objects, (problem,))

    def _parsed(self, path: Path) -> tuple[dict[_Key, DecodedObject], tuple[Problem, ...]]:
        """Decode the objects of a file. Raises one of documents.UNREADABLE."""
        objects: dict[_Key, DecodedObject] = {}
        problems: list[Problem] = []
        for i, found in enumerate(_decoded(path)):
            if found is None:
                continue
            kind, decoded = found
            if decoded.name is None:
                # The text of the Problem ends with the consequence: the object is ignored.
                problems.append(Problem("File", str(path), f"object {i + 1}", str(decoded.value)))
            elif kind is Kind.NODE and decoded.name != self._node:
                log.debug("%s: ignoring Node %s: this is %s", path, decoded.name, self._node)
            elif (kind, decoded.name) in objects:
                problems.append(_duplicate(kind, decoded.name, path, path))
            else:
                objects[kind, decoded.name] = decoded
        return objects, tuple(problems)

    def _merged(self) -> tuple[dict[_Key, DecodedObject], frozenset[Problem]]:
        """Return the objects and the problems of all files."""
        merged: dict[_Key, DecodedObject] = {}
        owner: dict[_Key, Path] = {}
        problems: set[Problem] = set()
        for path in sorted(self._files):
            file = self._files[path]
            problems.update(file.problems)
            for key, decoded in file.objects.items():
                if key in owner:
                    problems.add(_duplicate(*key, owner[key], path))
                    continue
                owner[key] = path
                if isinstance(decoded.value, Problem):
                    problems.add(decoded.value)
                elif isinstance(decoded.value, NotProxied):
                    log.debug(
                        "%s %s is not proxied: %s", key[0].value, key[1], decoded.value.reason
                    )
                else:
                    merged[key] = decoded
        return merged, frozenset(problems)

    def _emit_changes(
        self, merged: dict[_Key, DecodedObject], problems: frozenset[Problem]
    ) -> None:
        """Emit the events that lead from the known objects to the merged ones."""
        now = self._clock.now()
        for kind, name in self._known.keys() - merged.keys():
            self._emit(Delete(kind, name, now))
        for key, decoded in merged.items():
            known = self._known.get(key)
            if known is None or known.value != decoded.value:
                assert not isinstance(decoded.value, Problem | NotProxied)  # noqa: S101
                self._emit(Upsert(decoded.value, now))
        for problem in sorted(problems - self._problems, key=str):
            self._emit(InvalidObject(problem))
        self._known, self._problems = merged, problems


def read_file(path: Path) -> Iterator[Event]:
    """Yield each object of a file as an Upsert, an InvalidObject, or a Delete if not proxied.

    Raises UsageError if the file cannot be read or does not parse.
    """
    try:
        decoded_objects = list(_decoded(path))
    except documents.UNREADABLE as error:
        raise UsageError(f"{path}: {documents.error_text(error)}") from error
    for found in decoded_objects:
        if found is None:
            continue
        kind, decoded = found
        if decoded.name is None:
            raise UsageError(f"{path}: {decoded.value}")
        if isinstance(decoded.value, Problem):
            yield InvalidObject(decoded.value)
        elif isinstance(decoded.value, NotProxied):
            yield Delete(kind, decoded.name)
        else:
            yield Upsert(decoded.value)


def _decoded(path: Path) -> Iterator[tuple[Kind, DecodedObject] | None]:
    """Yield each object of a file, None for one of another kind.

    Raises one of documents.UNREADABLE.
    """
    for document in documents.objects(path):
        if not isinstance(document, dict):
            yield Kind.SERVICE, _unusable("not an object")
            continue
        kind = _KINDS.get((str(document.get("apiVersion")), str(document.get("kind"))))
        if kind is None:
            log.debug("%s: ignoring an object of another kind", path)
            yield None
            continue
        try:
            yield kind, decode_object(kind, documents.encoded(_with_namespace(kind, document)))
        except (ValueError, TypeError, RecursionError) as error:
            yield kind, _unusable(f"not JSON: {type(error).__name__}")


def _unusable(reason: str) -> DecodedObject:
    problem = Problem("Object", "(no name)", "(whole object)", f"{reason}; ignored")
    return DecodedObject(None, "", problem)


def _with_namespace(kind: Kind, document: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = document.get("metadata")
    # As kubectl does, without whose default the decoder rejects the object.
    if kind is Kind.NODE or not isinstance(meta, dict) or meta.get("namespace"):
        return document
    return {**document, "metadata": meta | {"namespace": DEFAULT_NAMESPACE}}


def _duplicate(kind: Kind, name: ObjectName, first: Path, second: Path) -> Problem:
    where = "twice" if first == second else f"in {first} too, and that one is used"
    return Problem(kind.value, str(name), "metadata.name", f"{second}: defined {where}")
