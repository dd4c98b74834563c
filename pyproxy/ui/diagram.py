"""A diagram of one Service port: frontends, the port, endpoints, and the lines between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from pyproxy.inspect.services import EndpointView, FrontendView, PortView
from pyproxy.policy.routing import Scope, Use

WIDTH = 960
_ROW = 52
_BOX_HEIGHT = 42
_BOX_WIDTH = 316
_MAX_BOXES = 40
"""Boxes in a column; the last one stands for the rest."""


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
        """The y coordinate of its middle."""
        return self.y + self.height // 2


class Curve(msgspec.Struct, frozen=True):
    """A curve between two boxes, as an SVG path; `kind` is its class in the style sheet."""

    path: str
    kind: str


class Diagram(msgspec.Struct, frozen=True):
    """Boxes and curves in a space of `WIDTH` by `height`; `title` is the text alternative."""

    title: str
    height: int
    boxes: tuple[Box, ...]
    curves: tuple[Curve, ...]


def draw(port: PortView) -> Diagram:
    """Draw one port: frontends on the left, endpoints on the right, used ones first."""
    frontends = [_frontend(each, port) for each in port.frontends] or [
        ("no address", "clients cannot connect", "idle")
    ]
    sorted_endpoints = sorted(port.endpoints, key=lambda each: (not each.used_by, each.address))
    endpoints = [_endpoint(each) for each in sorted_endpoints] or [
        ("no endpoint", "connections are rejected", "idle")
    ]
    left = list(_column(frontends, 0))
    right = list(_column(endpoints, WIDTH - _BOX_WIDTH))
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
    used = sum(1 for each in port.endpoints if each.used_by)
    return Diagram(
        f"{name}: {len(port.frontends)} addresses, {used} of {len(port.endpoints)} endpoints used",
        height,
        (*left, middle, *right),
        (*_left_curves(left, middle), *_right_curves(middle, right)),
    )


def _frontend(each: FrontendView, port: PortView) -> tuple[str, str, str]:
    address = each.address or "node port addresses"
    host = f"[{address}]" if ":" in address else address
    used = any(endpoint.used_by for endpoint in port.endpoints)
    kind = "idle" if each.use in _UNSERVED or not used else "frontend"
    return f"{host}:{each.port}", f"{_SCOPES[each.scope]}{_USES[each.use]}", kind


_SCOPES = {
    Scope.CLUSTER_IP.value: "cluster IP",
    Scope.EXTERNAL_IP.value: "external IP",
    Scope.LOAD_BALANCER.value: "load balancer",
    Scope.NODE_PORT.value: "node port",
}

_USES = {
    Use.CLUSTER.value: "",
    Use.LOCAL.value: ", endpoints of this node",
    Use.SPLIT.value: ", external clients: endpoints of this node",
    Use.REJECT.value: ", rejected",
    Use.DROP.value: ", dropped",
}

_UNSERVED = (Use.REJECT.value, Use.DROP.value)


def _endpoint(each: EndpointView) -> tuple[str, str, str]:
    place = ", ".join(filter(None, (each.node, each.zone)))
    if not each.used_by:
        return each.address, each.reason, "unused"
    clients = "" if each.used_by == "all" else f"{each.used_by} clients"
    kind = "used" if each.used_by == "all" else each.used_by
    return each.address, ": ".join(filter(None, (clients, place))), kind


def _column(texts: Sequence[tuple[str, str, str]], x: int) -> Iterator[Box]:
    shown = texts if len(texts) <= _MAX_BOXES else texts[: _MAX_BOXES - 1]
    for row, (title, note, kind) in enumerate(shown):
        yield Box(x, row * _ROW, _BOX_WIDTH, _BOX_HEIGHT, title, note, kind)
    if len(shown) < len(texts):
        rest = f"and {len(texts) - len(shown)} more"
        y = len(shown) * _ROW
        yield Box(x, y, _BOX_WIDTH, _BOX_HEIGHT, rest, "see the table below", "more")


def _left_curves(boxes: Sequence[Box], middle: Box) -> Iterator[Curve]:
    for box in boxes:
        if box.kind != "more":
            yield Curve(_path(box.x + box.width, box.middle, middle.x, middle.middle), box.kind)


def _right_curves(middle: Box, boxes: Sequence[Box]) -> Iterator[Curve]:
    # Unused endpoints have a box and no curve.
    for box in boxes:
        if box.kind not in ("unused", "more", "idle"):
            start = middle.x + middle.width
            yield Curve(_path(start, middle.middle, box.x, box.middle), box.kind)


def _path(x1: int, y1: int, x2: int, y2: int) -> str:
    half = (x1 + x2) // 2
    return f"M{x1} {y1} C{half} {y1} {half} {y2} {x2} {y2}"
