"""A dataplane over a kernel in dicts."""

from __future__ import annotations

import pytest

from tests.dataplane.ipvs.stage import Stage


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)
