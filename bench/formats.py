"""Streaming lists in JSON and in protobuf: bytes, CPU time of decoding, and memory.

The lab's API server makes the bytes, and each format is decoded in a process of its own, by the
modules that the agent uses.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from pyproxy_lab.apiserver.registry import Registry
from pyproxy_lab.apiserver.rendering import rendering
from pyproxy_lab.apiserver.resources import STORED, Resource
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.apiserver.store import EventType
from pyproxy_lab.bench.figures import Spread, duration, heading, mebibytes, row
from pyproxy_lab.bench.shape import Size, objects

from pyproxy.model.objects import Kind
from pyproxy.source.decode import decode_object
from pyproxy.source.formats import Format, format_of
from pyproxy.source.media_types import JSON_TYPE, PROTOBUF_TYPE

SIZE = Size(10_000, 10)
_RUNS = 5
_CHUNK = 1 << 16
_TABLES = {Kind.SERVICE: "services", Kind.ENDPOINT_SLICE: "endpointslices"}
_FORMATS = {"JSON": JSON_TYPE, "protobuf": PROTOBUF_TYPE}


class Figures(msgspec.Struct, frozen=True):
    """CPU seconds of the first decoding, the imports of the format included, and bytes of memory.

    `memory` is what the peak of the process grew by.
    """

    seconds: float
    memory: int
    decoded: int


def print_formats(size: Size = SIZE, runs: int = _RUNS) -> None:
    """Measure both formats in turn, and print the figures."""
    with TemporaryDirectory() as folder:
        files = {
            (kind, name): Path(folder, f"{kind.value}-{name}")
            for kind in _TABLES
            for name in _FORMATS
        }
        _write(size, files)
        figures: dict[tuple[Kind, str], list[Figures]] = {key: [] for key in files}
        for _ in range(runs):
            for (kind, name), file in files.items():
                figures[kind, name].append(_in_a_process(kind, name, file))
        heading(f"{size}, streaming lists decoded, {runs} runs")
        for (kind, name), found in figures.items():
            spread = Spread([each.seconds for each in found])
            memory = mebibytes(max(each.memory for each in found))
            count = files[kind, name].stat().st_size
            note = f"{count / 1e6:.1f} MB, {memory} of memory"
            row(f"{found[0].decoded:,} {kind.value}s in {name}: CPU", spread.ends, note)
        for kind in _TABLES:
            json, protobuf = (
                min(each.seconds for each in figures[kind, name]) for name in _FORMATS
            )
            row(f"{kind.value}: protobuf by JSON, at best", f"{protobuf / json:.2f}")
            row(f"{kind.value}: difference", duration(abs(protobuf - json)))


def _write(size: Size, files: dict[tuple[Kind, str], Path]) -> None:
    registry = Registry(Settings())
    registry.load(objects(size))
    for (kind, name), file in files.items():
        resource_of = STORED[_TABLES[kind]]
        with file.open("wb") as out:
            out.writelines(_events(registry, resource_of, _FORMATS[name]))


def _events(registry: Registry, kind: Resource, media_type: str) -> Iterator[bytes]:
    shape = rendering(kind, media_type, "")
    for stored in registry.store.table(kind).current("/"):
        yield shape.event(EventType.ADDED, stored)


def _in_a_process(kind: Kind, name: str, file: Path) -> Figures:
    # Not forked: the parent's memory would hide what decoding needs.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_decode, (kind, name, file))


def _decode(kind: Kind, name: str, file: Path) -> Figures:
    before, began = _peak(), time.process_time()
    form = format_of(_FORMATS[name])
    if form is None:
        raise ValueError(f"{name} is no format")
    kept = list(_decoded(form, kind, file))
    return Figures(time.process_time() - began, _peak() - before, len(kept))


def _decoded(form: Format, kind: Kind, file: Path) -> Iterator[object]:
    with file.open("rb") as opened:
        for frame in form.frames(iter(lambda: opened.read(_CHUNK), b"")):
            yield decode_object(kind, form.event(frame).object).value


def _peak() -> int:
    """Return the peak of resident memory; that of getrusage has the parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10
