"""The same events from a folder of manifests, so that a proxy runs without an API server.

Every `.yaml`, `.yml` and `.json` file in the folder and below it is read, hidden ones aside, each
with one or several documents, lists among them. The folder is watched, and a changed file alone
is read again.

A file speaks as a whole: while it does not parse, what it said last stays in force. An object that
several files define is the first file's, by the order of their paths.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml
from watchfiles import watch

from pyproxy.errors import Problem, UsageError
from pyproxy.model.events import Delete, Event, InvalidObject, Synced, Upsert
from pyproxy.model.objects import Kind, ObjectName
from pyproxy.source.decode import DecodedObject, NotProxied, decode_object
from pyproxy.source.retry import Clock, SystemClock
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

DEFAULT_NAMESPACE = "default"
SUFFIXES = frozenset({".yaml", ".yml", ".json"})

STOP_TIMEOUT = 1.0
"""Seconds that `stop` waits for the thread."""

DEBOUNCE_MS = 50
"""How long changes are gathered; an editor and a deployment tool write in several steps."""

_KINDS = {
    ("v1", "Service"): Kind.SERVICE,
    ("discovery.k8s.io/v1", "EndpointSlice"): Kind.ENDPOINT_SLICE,
    ("v1", "Node"): Kind.NODE,
}

_Key = tuple[Kind, ObjectName]


class _File(msgspec.Struct):
    """What a file says, and what is wrong in it."""

    objects: dict[_Key, DecodedObject] = msgspec.field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


class ManifestSource:
    """Reads and watches a folder in one thread of its own, from which `emit` is called.

    Raises UsageError where there is no such folder.
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
        self._said: frozenset[Problem] = frozenset()
        self._stopping = threading.Event()
        self._heard = self._clock.now()
        self._thread = Worker("source-manifests", self._run)

    def start(self) -> None:
        """Begin to read; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; may be called more than once, and before `start`."""
        self._stopping.set()
        self._thread.end(STOP_TIMEOUT)

    def age(self) -> float:
        """Seconds since the folder was last looked at."""
        return self._clock.now() - self._heard

    def _run(self) -> None:
        # The watch begins before the first reading, so that no change falls between the two.
        changes = watch(
            self._folder,
            stop_event=self._stopping,
            debounce=DEBOUNCE_MS,
            step=DEBOUNCE_MS,
            rust_timeout=2 * DEBOUNCE_MS,
            yield_on_timeout=True,
            watch_filter=None,
        )
        next(changes, None)
        self._refresh(self._paths())
        for kind in Kind:
            names = frozenset(name for known, name in self._known if known is kind)
            aside = frozenset(problem.name for problem in self._said if problem.kind == kind.value)
            self._emit(Synced(kind, names, aside))
        for changed in changes:
            self._heard = self._clock.now()
            if changed:
                self._refresh({Path(path) for _, path in changed})

    def _paths(self) -> set[Path]:
        found = (path for path in self._folder.rglob("*") if _is_manifest(path, self._folder))
        return {path for path in found if path.is_file()}

    def _refresh(self, changed: set[Path]) -> None:
        """Read files again, and tell what is different now.

        What is no manifest may stand for many: a folder that was moved, or the hidden link by
        which a mounted ConfigMap exchanges all of its files at once. Then every file is read.
        """
        if not all(_is_manifest(path, self._folder) for path in changed):
            changed = self._paths() | self._files.keys()
        for path in changed:
            if path.is_file():
                self._files[path] = self._load(path)
            else:
                self._files.pop(path, None)
        self._tell(*self._merged())

    def _load(self, path: Path) -> _File:
        """Read one file; one that does not parse says what it said before, and what is wrong."""
        try:
            return self._parsed(path, path.read_bytes())
        except OSError as error:
            message = f"cannot be read: {error.strerror}"
        except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
            message = _where(error)
        before = self._files.get(path, _File())
        problem = Problem("File", str(path), "content", f"{message}; what it said before stays")
        return _File(before.objects, (problem,))

    def _parsed(self, path: Path, data: bytes) -> _File:
        """Read a file's objects.

        Raises yaml.YAMLError and ValueError for what does not parse, and TypeError, OverflowError
        and RecursionError for YAML that no JSON can express.
        """
        found = _File()
        problems: list[Problem] = []
        for i, document in enumerate(_documents(path, data)):
            kind = _KINDS.get((str(document.get("apiVersion")), str(document.get("kind"))))
            if kind is None:
                log.debug("%s: a %s is not used here", path, document.get("kind"))
                continue
            reading = decode_object(kind, msgspec.json.encode(_with_namespace(kind, document)))
            if reading.name is None:
                field = f"document {i + 1}"
                text = str(reading.value)
                problems.append(Problem("File", str(path), field, f"{text}; left out"))
            elif kind is Kind.NODE and reading.name != self._node:
                log.debug("%s: Node %s is another one's", path, reading.name)
            elif (kind, reading.name) in found.objects:
                problems.append(_twice(kind, reading.name, path, path))
            else:
                found.objects[kind, reading.name] = reading
        return _File(found.objects, tuple(problems))

    def _merged(self) -> tuple[dict[_Key, DecodedObject], frozenset[Problem]]:
        """Join what all files say, and what is wrong in them."""
        merged: dict[_Key, DecodedObject] = {}
        owner: dict[_Key, Path] = {}
        problems: set[Problem] = set()
        for path in sorted(self._files):
            file = self._files[path]
            problems.update(file.problems)
            for key, reading in file.objects.items():
                if key in owner:
                    problems.add(_twice(*key, owner[key], path))
                    continue
                owner[key] = path
                if isinstance(reading.value, Problem):
                    problems.add(reading.value)
                elif isinstance(reading.value, NotProxied):
                    log.debug("%s %s is not ours: %s", *key, reading.value.reason)
                else:
                    merged[key] = reading
        return merged, frozenset(problems)

    def _tell(self, merged: dict[_Key, DecodedObject], problems: frozenset[Problem]) -> None:
        """Send the events from what was known to what is."""
        now = self._clock.now()
        for kind, name in self._known.keys() - merged.keys():
            self._emit(Delete(kind, name, now))
        for key, reading in merged.items():
            known = self._known.get(key)
            if known is None or known.value != reading.value:
                assert not isinstance(reading.value, Problem | NotProxied)  # noqa: S101
                self._emit(Upsert(reading.value, now))
        for problem in sorted(problems - self._said, key=str):
            self._emit(InvalidObject(problem))
        self._known, self._said = merged, problems


def read_file(path: Path) -> Iterator[Event]:
    """Give what a file of manifests says, each object as an Upsert, SetAside or Delete.

    Raises UsageError where the file cannot be read or does not parse.
    """
    try:
        documents = list(_documents(path, path.read_bytes()))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UsageError(f"{path}: {_where(error)}") from error
    for document in documents:
        kind = _KINDS.get((str(document.get("apiVersion")), str(document.get("kind"))))
        if kind is None:
            continue
        reading = decode_object(kind, msgspec.json.encode(_with_namespace(kind, document)))
        if reading.name is None:
            raise UsageError(f"{path}: {reading.value}")
        if isinstance(reading.value, Problem):
            yield InvalidObject(reading.value)
        elif isinstance(reading.value, NotProxied):
            yield Delete(kind, reading.name)
        else:
            yield Upsert(reading.value)


def _is_manifest(path: Path, folder: Path) -> bool:
    """Tell manifests from an editor's swap files and from the rest of a repository."""
    parts = path.relative_to(folder).parts
    return path.suffix in SUFFIXES and not any(part.startswith(".") for part in parts)


def _documents(path: Path, data: bytes) -> Iterator[Mapping[str, Any]]:
    """Give the objects in a file, those of a List one by one.

    Raises yaml.YAMLError, ValueError, RecursionError.
    """
    loaded = [json.loads(data)] if path.suffix == ".json" else list(_load_all(data))
    for i, document in enumerate(loaded):
        if document is None:
            continue
        if not isinstance(document, dict):
            raise ValueError(f"document {i + 1} is no object")
        if str(document.get("kind", "")).endswith("List") and "items" in document:
            items = document["items"] or []
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise ValueError(f"document {i + 1}: items is no list of objects")
            # Lists of one kind, as an API server writes them, leave the kind of items out.
            version, kind = document.get("apiVersion"), str(document["kind"]).removesuffix("List")
            yield from ({"apiVersion": version, "kind": kind} | item for item in items)
        else:
            yield document


def _load_all(data: bytes) -> Iterator[Any]:
    return yaml.load_all(data, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _with_namespace(kind: Kind, document: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = document.get("metadata")
    if kind is Kind.NODE or not isinstance(meta, dict) or meta.get("namespace"):
        return document
    return {**document, "metadata": meta | {"namespace": DEFAULT_NAMESPACE}}


def _twice(kind: Kind, name: ObjectName, first: Path, second: Path) -> Problem:
    where = "twice" if first == second else f"in {first} too, and that one is used"
    return Problem(kind.value, str(name), "metadata.name", f"{second}: defined {where}")


def _where(error: Exception) -> str:
    """Say what is wrong and in which line, as far as the parser knows."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}: {error.msg}"
    mark = getattr(error, "problem_mark", None)
    text = " ".join(str(getattr(error, "problem", None) or error).split())
    return f"line {mark.line + 1}: {text}" if mark is not None else f"does not parse: {text}"
