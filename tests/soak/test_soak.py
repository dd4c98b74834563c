"""Half a minute of the soak; `make soak` is ten."""

from __future__ import annotations

import pytest

from tests.soak import soak


@pytest.mark.kernel
def test_half_a_minute_of_it() -> None:
    result = soak.run(30.0, seed=20261)
    assert result.failures() == []
    assert result.changes > 2500
    assert len(result.faults) >= 3
