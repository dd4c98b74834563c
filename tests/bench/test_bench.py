"""`pyproxy bench` as a whole, on a cluster so small that it is quick."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from pyproxy_lab.bench.measures import Measure

from pyproxy.cli import main


@pytest.mark.packets
def test_everything_is_measured_and_written(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pyproxy", "bench", "--output", str(tmp_path)),
            *("--services", "20", "--endpoints", "3", "--runs", "1"),
            *("--changes", "1", "--pause", "0", "--churn-rate", "50", "--churn-seconds", "1"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr  # a thread's exception does not change the exit status
    document = msgspec.json.decode((tmp_path / "bench.json").read_bytes())
    missing = [each.key for each in Measure if not document["measures"][each.key]["agents"]]
    assert missing == []
    assert document["measures"]["restart_commits"]["agents"]["pyproxy"]["median"] == 0
    assert (tmp_path / "bench.md").read_text() in done.stdout
    assert "endpoint up" in (tmp_path / "bench.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--runs 0", "--runs 0: give a number above 0"),
        ("--pause -1", "--pause -1: give a number of at least 0"),
        ("--churn-rate -1", "--churn-rate -1: give a number of at least 0"),
        ("--services 9999 --endpoints 999", "9,999 services x 999 is more than 524,288 endpoints"),
        ("--agent pyproxy --agent pyproxy", "two have the same name"),
        ("--agent kube-proxy", "name its program"),
        ("--output /proc/self/stat", "--output /proc/self/stat: File exists"),
    ],
)
def test_a_usage_error_is_one_line(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments.split()]) == 2
    output = capsys.readouterr().err
    assert message in output
    assert output.count("\n") == 1
