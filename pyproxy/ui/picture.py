"""A Service port drawn as its way from addresses to endpoints: where everything stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from pyproxy.inspect.services import BackendView, FrontendView, PortView

WIDTH = 960
_ROW = 52
_BOX_HEIGHT = 42
_BOX_WIDTH = 316
_MOST = 40
"""Boxes in a column, after which they are counted instead of drawn."""


class Box(msgspec.Struct, frozen=True):
    """A box with two lines of text; `kind` is its class in the style sheet."""

    x: int
    y: int
    width: int
    height: int
    title: str
    note: str
    kind: str

    @property
    def middle(self) -> int:
        """Half its height."""
        return self.y + self.height // 2


class Line(msgspec.Struct, frozen=True):
    """A curve between two boxes; `kind` is its class in the style sheet."""

    path: str
    kind: str


class Picture(msgspec.Struct, frozen=True):
    """Boxes and lines in a space of `WIDTH` by `height`; `title` says it in words."""

    title: str
    height: int
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]


def draw(port: PortView) -> Picture:
    """Draw one port: frontends on the left, endpoints on the right, used ones first."""
    frontends = [_frontend(each, port) for each in port.frontends] or [
        ("no address", "nobody can connect", "idle")
    ]
    backends = sorted(port.backends, key=lambda each: (not each.used_by, each.backend))
    ends = [_backend(each) for each in backends] or [
        ("no endpoint", "connections are refused", "idle")
    ]
    left = list(_column(frontends, 0))
    right = list(_column(ends, WIDTH - _BOX_WIDTH))
    height = max(len(left), len(right)) * _ROW
    name = port.name or "port"
    middle = Box(
        (WIDTH - 130) // 2,
        (height - _BOX_HEIGHT - 10) // 2,
        130,
        _BOX_HEIGHT,
        name,
        f"{port.port}/{port.protocol} {port.family}",
        "port",
    )
    used = sum(1 for each in backends if each.used_by)
    return Picture(
        f"{name}: {len(port.frontends)} addresses, {used} of {len(backends)} endpoints are used",
        height,
        (*left, middle, *right),
        (*_join_left(left, middle), *_join_right(middle, right)),
    )


def _frontend(each: FrontendView, port: PortView) -> tuple[str, str, str]:
    address = each.address or "this node's addresses"
    host = f"[{address}]" if ":" in address else address
    used = any(backend.used_by for backend in port.backends)
    kind = "idle" if each.use in ("reject", "drop") or not used else "frontend"
    return f"{host}:{each.port}", f"{_SCOPES.get(each.scope, each.scope)}{_USES[each.use]}", kind


_SCOPES = {
    "clusterIP": "cluster IP",
    "externalIP": "external IP",
    "loadBalancer": "load balancer",
    "nodePort": "node port",
}

_USES = {
    "cluster": "",
    "local": ", endpoints of this node",
    "split": ", from outside: endpoints of this node",
    "reject": ", refused",
    "drop": ", dropped",
}


def _backend(each: BackendView) -> tuple[str, str, str]:
    place = ", ".join(filter(None, (each.node, each.zone)))
    if not each.used_by:
        return each.backend, each.why_not, "unused"
    whom = "" if each.used_by == "everybody" else each.used_by
    kind = {"everybody": "used", "pods and the node": "inside"}.get(each.used_by, "outside")
    return each.backend, ": ".join(filter(None, (whom, place))), kind


def _column(texts: Sequence[tuple[str, str, str]], x: int) -> Iterator[Box]:
    shown = texts if len(texts) <= _MOST else texts[: _MOST - 1]
    for row, (title, note, kind) in enumerate(shown):
        yield Box(x, row * _ROW, _BOX_WIDTH, _BOX_HEIGHT, title, note, kind)
    if len(shown) < len(texts):
        rest = f"and {len(texts) - len(shown)} more"
        y = len(shown) * _ROW
        yield Box(x, y, _BOX_WIDTH, _BOX_HEIGHT, rest, "the table below has all", "more")


def _join_left(boxes: Sequence[Box], middle: Box) -> Iterator[Line]:
    for box in boxes:
        if box.kind != "more":
            yield Line(_curve(box.x + box.width, box.middle, middle.x, middle.middle), box.kind)


def _join_right(middle: Box, boxes: Sequence[Box]) -> Iterator[Line]:
    for box in boxes:
        if box.kind not in ("unused", "more", "idle"):
            start = middle.x + middle.width
            yield Line(_curve(start, middle.middle, box.x, box.middle), box.kind)


def _curve(x1: int, y1: int, x2: int, y2: int) -> str:
    half = (x1 + x2) // 2
    return f"M{x1} {y1} C{half} {y1} {half} {y2} {x2} {y2}"
