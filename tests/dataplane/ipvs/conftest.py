"""A dataplane over a kernel in dicts, and what the tests of a real one need."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dataplane.ipvs.stage import Stage


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need IPVS on a kernel without it."""
    if item.get_closest_marker("vm") and not Path("/proc/net/ip_vs").exists():
        pytest.skip("this kernel has no IPVS, or has not loaded ip_vs")


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)
