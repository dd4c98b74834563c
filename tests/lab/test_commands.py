"""The lab's commands as whole processes: their output, exit status and leftovers."""

from __future__ import annotations

import importlib.metadata
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.namespace import NETNS_FOLDER, with_default_signals

from pyproxy import cli

PYPROXY = [sys.executable, "-m", "pyproxy"]
CONFORMANCE = [sys.executable, "-m", "pyproxy_lab.conformance"]
CASES = Path(__file__).parents[1] / "conformance" / "cases"

packets = pytest.mark.packets


def left_by(pid: int) -> list[Path]:
    return list(NETNS_FOLDER.glob(f"lab{pid}-*"))


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@packets
def test_the_demo_passes_and_leaves_nothing() -> None:
    with subprocess.Popen([*PYPROXY, "lab", "demo"], stdout=subprocess.PIPE, text=True) as demo:
        output, _ = demo.communicate(timeout=300)
    assert demo.returncode == 0, output
    assert "requests, none failed" in output
    assert "refused at once" in output
    assert "table inet pyproxy {" in output
    assert "all checks passed" in output
    assert not left_by(demo.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@packets
def test_an_interrupted_demo_leaves_nothing(number: signal.Signals) -> None:
    command = with_default_signals([*PYPROXY, "lab", "demo"])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "Three pods" in line:
                break
        assert left_by(demo.pid)
        demo.send_signal(number)
        demo.communicate(timeout=300)
    assert demo.returncode == 130
    assert not left_by(demo.pid)


@packets
def test_the_runner_prints_a_line_for_each_case_and_why_one_failed(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(
        """
- name: as it is
  steps: &steps
  - apply:
    - metadata: {name: web}
      spec: {clusterIP: 10.96.9.9, ports: [{port: 80, targetPort: 8080}]}
      endpoints: [b1]
    probe: [{from: a2, to: "10.96.9.9:80", reach: [b1]}]
- name: as it is not
  steps:
  - probe: [{from: a2, to: "10.244.2.11:8080", expect: refused}]
- name: what cannot be connected to
  steps: [{hold: [{from: a2, to: ["10.244.2.11:1"]}]}]
- name: what the API server refuses
  steps:
  - apply: [{metadata: {name: web}, spec: {clusterIP: 192.0.2.1, ports: [{port: 80}]}}]
- name: for another mode
  not: [nftables]
  steps: *steps
"""
    )
    done = run([*CONFORMANCE, "--settle", "5", str(file)])
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ok   as it is (")
    assert lines[1].startswith("FAIL as it is not (")
    assert "a2 -> 10.244.2.11:8080: wanted refused; saw b1 4x, seen as 10.244.1.12" in lines[2]
    assert lines[3].startswith("FAIL what cannot be connected to (")
    assert "a2 -> 10.244.2.11:1: wanted a connection; saw [Errno 111]" in lines[4]
    assert lines[5].startswith("FAIL what the API server refuses (")
    assert "422" in lines[6]
    assert lines[-1] == "1 passed, 3 failed"


@packets
def test_another_proxy_is_awaited_by_packets_and_its_release_leaves_cases_out(
    tmp_path: Path,
) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(
        """
- name: a client that never sends too early
  steps:
  - apply:
    - metadata: {name: dns}
      spec: {clusterIP: 10.96.9.8, ports: [{port: 53, targetPort: 8080, protocol: UDP}]}
      endpoints: [b1]
    probe: [{from: a2, to: "10.96.9.8:53/udp", reach: [b1], sport: 42000, tries: 1}]
  - delete: [dns]
    probe: [{from: a2, to: "10.96.9.8:53/udp", expect: blocked}]
- {name: new, requires: [ServiceTrafficDistribution], steps: []}
- {name: newer, requires: [ServiceInternalTrafficPolicy, PreferSameTrafficDistribution], steps: []}
"""
    )
    agent = (
        f"{sys.executable} -m pyproxy run --hostname-override node-a --kubeconfig {{kubeconfig}}"
    )
    command = [*CONFORMANCE, "--settle", "0", "--kube-proxy", "1.31", "--agent", agent, str(file)]
    done = run(command)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == (
        "--   newer: kube-proxy has PreferSameTrafficDistribution since 1.34: node hints (KEP 3015)"
    )
    assert lines[1].startswith("ok   a client that never sends too early (")
    assert lines[-1] == "2 passed, 0 failed, 1 left out"


@packets
def test_an_agent_that_ends_at_once_is_an_error_with_its_last_lines() -> None:
    done = run(
        [
            *CONFORMANCE,
            "--settle",
            "0.5",
            "--agent",
            "sh -c 'echo no such thing; exit 3'",
            str(CASES),
        ]
    )
    assert done.returncode == 1
    assert "status 3" in done.stderr
    assert "no such thing" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "conformance: nowhere.yaml: .*No such file"),
        ([str(CASES), "--only", "no case is called this"], "no case is left to run"),
        ([str(CASES), "--kube-proxy", "new"], "--kube-proxy new: write a release such as 1.30"),
    ],
)
def test_a_usage_error_is_one_line(arguments: list[str], message: str) -> None:
    done = run([*CONFORMANCE, *arguments])
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert re.search(message, done.stderr)


@pytest.mark.parametrize("command", ["lab", "bench"])
def test_without_pyproxy_lab_its_commands_name_the_package_to_install(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: ())
    assert cli.main([command, "--help"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"pyproxy: {command}: pyproxy-lab is not installed: run pip install pyproxy-lab"
    ]


@packets
def test_an_api_server_of_the_machine_is_reached_through_a_relay(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("- {name: nothing, steps: []}")
    with ApiServer.running(Settings(token="t")) as server:
        done = run([*CONFORMANCE, "--api", server.url, "--token", "t", str(file)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1 passed, 0 failed"


@packets
def test_an_api_url_without_a_host_is_a_usage_error() -> None:
    done = run([*CONFORMANCE, "--api", "127.0.0.1:1", str(CASES)])
    assert done.returncode == 2
    assert "--api 127.0.0.1:1: write a URL such as https://127.0.0.1:6443" in done.stderr
