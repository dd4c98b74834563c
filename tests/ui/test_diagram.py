"""The diagram of a Service port."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.inspect.services import EndpointView, FrontendView, PortView
from pyproxy.ui.diagram import draw


def port(frontends: int, used: int, unused: int) -> PortView:
    return PortView(
        name="http",
        family="IPv4",
        protocol="TCP",
        port=80,
        node_port=0,
        frontends=tuple(
            FrontendView("clusterIP", f"10.96.0.{n}", 80, "cluster") for n in range(frontends)
        ),
        endpoints=tuple(
            EndpointView(f"10.244.0.{n}:8080", "node-a", "", "all" * (n < used), "not ready")
            for n in range(used + unused)
        ),
        hints="",
    )


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_boxes_do_not_overlap_and_lie_within_the_diagram(
    frontends: int, used: int, unused: int
) -> None:
    diagram = draw(port(frontends, used, unused))
    for box in diagram.boxes:
        assert box.x >= 0
        assert box.x + box.width <= 960
        assert box.y >= -10
        assert box.y + box.height <= diagram.height + 10
    for column in {box.x for box in diagram.boxes}:
        rows = [box.y for box in diagram.boxes if box.x == column]
        assert len(set(rows)) == len(rows)


@pytest.mark.parametrize(
    ("frontends", "used", "unused", "curves"),
    [(1, 3, 2, 4), (2, 0, 2, 2), (0, 0, 0, 1), (3, 1, 0, 4)],
)
def test_curves_lead_to_used_endpoints_only(
    frontends: int, used: int, unused: int, curves: int
) -> None:
    diagram = draw(port(frontends, used, unused))
    assert len(diagram.curves) == curves
