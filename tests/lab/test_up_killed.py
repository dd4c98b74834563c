"""SIGKILL at random moments of a lab's life: `down`, or the next `up`, removes all that is left."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pyproxy_lab.namespace import NETNS_FOLDER

from tests.lab import up
from tests.lab.up import Up
from tests.waiting import until

pytestmark = pytest.mark.packets

_LONGEST_DELAY = 0.25
"""Seconds from the beginning of a phase; the phases are about as long."""


def _ending(lab: Up) -> bool:
    if lab.is_ready():
        lab.process.send_signal(signal.SIGTERM)
        return True
    return False


PHASES: dict[str, Callable[[Up], object]] = {
    "the folder exists": lambda lab: lab.folder.exists(),
    "the first namespace exists": lambda lab: lab.namespaces(),
    "the nodes exist": lambda lab: list(NETNS_FOLDER.glob(f"lab{lab.pid}-*-0-nb")),
    "the agents start": lambda lab: list(lab.folder.glob("agent-*.log")),
    "the kubeconfig exists": lambda lab: (lab.folder / "admin.conf").exists(),
    "it is ready": lambda lab: lab.is_ready(),
    "it is ending": _ending,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(metafunc.config.getoption("--lab-kills")))


def test_nothing_is_left(tmp_path: Path, seed: int) -> None:
    # Consecutive seeds take consecutive phases, and each run begins with another one; the moment
    # within a phase is random.
    chance = random.Random(f"{seed}-{os.getpid()}")
    name = list(PHASES)[(seed + os.getpid()) % len(PHASES)]
    delay = chance.uniform(0, _LONGEST_DELAY)
    lab = Up(tmp_path / "lab")
    until(lambda: PHASES[name](lab), f"{name}: {lab.text}", patience=120, pause=0.002)
    time.sleep(delay)
    lab.process.kill()
    lab.process.wait(timeout=60)
    moment = f"killed {delay:.3f} s after: {name}"
    if seed % 2:
        done = up.lab("down", lab.folder)
        assert done.returncode == 0, f"{moment}: {done.stderr}"
    else:
        with up.running(lab.folder, "--nodes", "1"):
            assert [each for each in lab.leftovers() if str(lab.folder) not in each] == [], moment
    assert lab.leftovers() == [], moment


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["the first namespace exists", "the agents start"])
def test_an_interrupted_start_leaves_nothing(
    tmp_path: Path, number: signal.Signals, name: str
) -> None:
    lab = Up(tmp_path / "lab")
    until(lambda: PHASES[name](lab), f"{name}: {lab.text}", patience=120, pause=0.002)
    status = lab.end(number)
    # It may have been ready by the time that the signal came.
    assert status == (0 if "ready after" in lab.text else 130), lab.text
    assert lab.leftovers() == []
