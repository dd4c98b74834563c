"""The attacks of the benchmark: objects that the agent can read, and a run that is short."""

import subprocess
import sys
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from bench.hostile import NAMES, chosen
from bench.hostile_objects import ATTACKS
from pyproxy.errors import UsageError
from pyproxy.model.objects import Kind
from pyproxy.source.decode import decode_object

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_s_objects_are_services_and_slices(name: str) -> None:
    attack = ATTACKS[name]
    for obj in [*islice(attack.made(), 4), *islice(attack.edits(), 4)]:
        assert decode_object(Kind(obj["kind"]), msgspec.json.encode(obj)).value is not None


def test_an_unknown_attack_is_named() -> None:
    assert chosen([]) == NAMES
    with pytest.raises(UsageError, match="--hostile flood: name one of affinity-fill, askers"):
        chosen(["flood"])


@pytest.mark.packets
def test_changes_are_timed_while_connections_attack() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench", "--services", "20", "--seconds", "1"),
            *("--hostile", "idle-connections"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    # Times depend on the machine, so that limits may be missed.
    assert done.returncode in (0, 1), done.stderr
    assert not done.stderr
    lines = [line.split()[0] for line in done.stdout.splitlines() if "  /livez " in line]
    assert lines == ["alone", "idle-connections"]
