"""A pytest plugin for the virtual machine that appends each report to a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FILE = Path("/run/results/reports")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Recorder(config))


class _Recorder:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with FILE.open("a") as file:
            file.write(json.dumps(data) + "\n")
