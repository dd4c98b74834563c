from __future__ import annotations

import argparse
import signal
import subprocess
import sys

import pytest
from pyproxy_lab.apiserver import command

from pyproxy.errors import UsageError
from tests.lab.api import SERVICES, SLICES, Api, eventually, service
from tests.waiting import PATIENCE

PROGRAM = """
import argparse, sys
from pyproxy_lab.apiserver import command
parser = argparse.ArgumentParser()
command.add_arguments(parser)
sys.exit(command.run(parser.parse_args()))
"""


def run(*flags: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(flags))


@pytest.mark.parametrize(
    "flags",
    [
        ("--listen", "8080"),
        ("--listen", "127.0.0.1:99999"),
        ("--service-node-port-range", "32000"),
        ("--service-node-port-range", "2-1"),
        ("--service-cluster-ip-range", "10.0.0.1/24"),
        ("--service-cluster-ip-range", "10.0.0.0/24,10.1.0.0/24"),
        ("--service-cluster-ip-range", "10.0.0.0/30"),
        ("--tls-cert", "cert.pem"),
        ("--listen", "127.0.0.1:0", "--tls-cert", "/none", "--tls-key", "/none"),
    ],
)
def test_a_bad_flag_is_a_usage_error(flags: tuple[str, ...]) -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(UsageError, match=f"lab apiserver: {flags[-2]}|lab apiserver: --tls"):
        run(*flags)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_is_and_ends_when_told(number: signal.Signals) -> None:
    flags = ["--listen", "127.0.0.1:0", "--token", "t"]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *flags], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        word, url = process.stdout.readline().split()
        assert word == "serving"
        api = Api(url, "t")
        api.ok("POST", SERVICES, service("web", selector={"app": "web"}))
        eventually(lambda: api.ok("GET", SLICES)["items"])
        with api.watch("/api/v1/services?watch=true") as watch:
            process.send_signal(number)
            watch.until_ended()
        assert process.wait(PATIENCE) == 0
