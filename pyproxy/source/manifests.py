"""Services, EndpointSlices and the Node from a folder of manifests, without an API server.

Every `.yaml`, `.yml` and `.json` file in the folder and below it is read, except hidden ones. A
file may have several documents and Lists. The folder is watched, and only changed files are read
again.

While a file does not parse, its previous objects stay in use. If several files define the same
object, the first file in the order of paths wins.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from watchfiles import watch
from watchfiles.main import FileChange

from pyproxy.errors import Problem, UsageError
from pyproxy.model.config_problems import ConfigProblem
from pyproxy.model.events import Delete, Event, InvalidObject, Synced, Upsert
from pyproxy.model.objects import Kind, ObjectName
from pyproxy.source import documents
from pyproxy.source.decode import DecodedObject, NotProxied, decode_object
from pyproxy.source.retry import Clock, SystemClock
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

DEFAULT_NAMESPACE = "default"
SUFFIXES = frozenset({".yaml", ".yml", ".json"})

STOP_TIMEOUT = 1.0
"""Seconds that `stop` waits for the thread."""

DEBOUNCE_MS = 50
"""Milliseconds to collect changes, because editors and tools write in several steps."""

RETRY = 5.0
"""Seconds between readings of a folder that cannot be watched."""

_KINDS = {
    ("v1", "Service"): Kind.SERVICE,
    ("discovery.k8s.io/v1", "EndpointSlice"): Kind.ENDPOINT_SLICE,
    ("v1", "Node"): Kind.NODE,
}

_Key = tuple[Kind, ObjectName]


class _File(msgspec.Struct):
    """The objects in a file, and its problems."""

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
        self._folder = folder
        self._node = ObjectName("", hostname)
        self._emit = emit
        self._clock = clock or SystemClock()
        self._files: dict[Path, _File] = {}
        self._known: dict[_Key, DecodedObject] = {}
        self._problems: frozenset[Problem] = frozenset()
        self._stopping = threading.Event()
        self._last_look = self._clock.now()
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
            except OSError as error:
                # Such as the limits of inotify, or a folder that was deleted.
                if self._is_watched:
                    log.warning(
                        "cannot watch %s, reading it every %.0f s: %s", self._folder, RETRY, error
                    )
                self._is_watched = False
                with suppress(OSError):
                    self._read_all()
                self._clock.wait(self._stopping, RETRY)

    def _follow(self) -> None:
        """Read the folder and its changes until the source stops. Raises OSError."""
        # The watch starts before the first reading, so that no change is lost between the two.
        folder = self._identity()
        changes = self._changes()
        # The generator adds its inotify watches when it is first advanced. Its first changes may be
        # dropped, because every file is read after them.
        next(changes, None)
        self._read_all()
        if not self._is_watched:
            log.info("watching %s again", self._folder)
            self._is_watched = True
        for changed in changes:
            self._last_look = self._clock.now()
            if changed:
                self._refresh({Path(path) for _, path in changed})
            # The watch is silent about another folder of the same name.
            if self._identity() != folder:
                raise FileNotFoundError("the folder was replaced")

    def _changes(self) -> Iterator[set[FileChange]]:
        """Yield changes of the folder, also empty ones now and then. Raises OSError."""
        try:
            yield from watch(
                self._folder,
                stop_event=self._stopping,
                debounce=DEBOUNCE_MS,
                step=DEBOUNCE_MS,
                rust_timeout=2 * DEBOUNCE_MS,
                # Also without changes, so that `age` shows that the thread works.
                yield_on_timeout=True,
                watch_filter=None,
            )
        except RuntimeError as error:
            # WatchfilesRustInternalError, such as EMFILE of inotify_init.
            raise OSError(str(error)) from error

    def _identity(self) -> tuple[int, int]:
        """Return what tells the folder from another one of its name. Raises OSError."""
        found = self._folder.stat()
        return found.st_dev, found.st_ino

    def _read_all(self) -> None:
        """Read all files, and emit Synced the first time. Raises OSError."""
        self._refresh(self._paths() | self._files.keys())
        self._last_look = self._clock.now()
        for kind in () if self._has_synced else Kind:
            names = frozenset(name for known, name in self._known if known is kind)
            invalid = frozenset(
                problem.name for problem in self._problems if problem.kind == kind.value
            )
            self._emit(Synced(kind, names, invalid))
        self._has_synced = True

    def _paths(self) -> set[Path]:
        found = (path for path in self._folder.rglob("*") if _is_manifest(path, self._folder))
        return {path for path in found if path.is_file()}

    def _refresh(self, changed: set[Path]) -> None:
        """Read changed files again and emit the differences.

        A changed path that is not a manifest may affect many: a folder that was moved, or the
        hidden symlink by which a mounted ConfigMap replaces its files. Then every file is read.
        """
        if not all(_is_manifest(path, self._folder) for path in changed):
            changed = self._paths() | self._files.keys()
        for path in changed:
            # is_file follows symlinks: a mounted ConfigMap consists of them.
            if path.is_file():
                self._files[path] = self._load(path)
            else:
                self._files.pop(path, None)
        self._emit_changes(*self._merged())

    def _load(self, path: Path) -> _File:
        """Read one file; if it does not parse, keep its previous objects and add a problem."""
        try:
            return self._parsed(path)
        except documents.UNREADABLE as error:
            message = documents.error_text(error)
        before = self._files.get(path, _File())
        problem = Problem(
            "File", str(path), "content", f"{message}; its previous objects stay in use"
        )
        return _File(before.objects, (problem,))

    def _parsed(self, path: Path) -> _File:
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
        return _File(objects, tuple(problems))

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


def _is_manifest(path: Path, folder: Path) -> bool:
    """Return whether a path is a manifest, not an editor's swap file or in a hidden folder."""
    parts = path.relative_to(folder).parts
    return path.suffix in SUFFIXES and not any(part.startswith(".") for part in parts)


def _with_namespace(kind: Kind, document: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = document.get("metadata")
    # As kubectl does, without whose default the decoder rejects the object.
    if kind is Kind.NODE or not isinstance(meta, dict) or meta.get("namespace"):
        return document
    return {**document, "metadata": meta | {"namespace": DEFAULT_NAMESPACE}}


def _duplicate(kind: Kind, name: ObjectName, first: Path, second: Path) -> Problem:
    where = "twice" if first == second else f"in {first} too, and that one is used"
    return Problem(kind.value, str(name), "metadata.name", f"{second}: defined {where}")
