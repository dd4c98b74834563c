"""Prometheus as a process of its own, and the queries to it."""

from __future__ import annotations

import http.client
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import yaml

SCRAPE_INTERVAL = 15
"""Seconds, as Prometheus' default configuration has it with the Grafana data source's default."""

STARTED = 60.0


class Series(msgspec.Struct, frozen=True):
    """The labels of a series, and its samples: seconds since 1970 and the value as text."""

    metric: dict[str, str]
    values: list[tuple[float, str]]


class _Data(msgspec.Struct, frozen=True):
    result: list[Series]


class _Response(msgspec.Struct, frozen=True):
    data: _Data


class Program(msgspec.Struct, frozen=True):
    """The unpacked package in `folder`, as tools/prometheus.sh leaves it."""

    folder: Path

    def command(self) -> list[str]:
        """Return the program with its flags for its pages."""
        share = self.folder.absolute() / "usr/share/prometheus"
        return [
            str(self.folder.absolute() / "usr/bin/prometheus"),
            f"--web.local-assets={share}/web/",
            f"--web.console.templates={share}/consoles",
            f"--web.console.libraries={share}/console_libraries",
            "--storage.tsdb.retention.time=10y",
        ]


class Prometheus(msgspec.Struct, frozen=True):
    """A server at a URL such as http://127.0.0.1:9090."""

    url: str

    def query(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """Evaluate an expression from `start` to `end` in steps of seconds.

        Raises RuntimeError with Prometheus' message for an invalid expression.
        """
        words = {"query": expression, "start": start, "end": end, "step": step}
        url = f"{self.url}/api/v1/query_range?{urllib.parse.urlencode(words)}"
        try:
            with urllib.request.urlopen(url) as reply:
                return msgspec.json.decode(reply.read(), type=_Response).data.result
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{expression}: {error.read().decode()}") from error

    def await_ready(self) -> None:
        """Wait until it serves queries. Raises TimeoutError."""
        deadline = time.monotonic() + STARTED
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready"):
                    return
            except (OSError, http.client.HTTPException):
                time.sleep(0.2)
        raise TimeoutError(f"{self.url} is not ready after {STARTED:.0f} s")


def configuration(targets: Mapping[str, str], rules: str) -> dict[str, object]:
    """Return a configuration that scrapes addresses, by the name of the node, as job pyproxy."""
    return {
        "global": {
            "scrape_interval": f"{SCRAPE_INTERVAL}s",
            "evaluation_interval": f"{SCRAPE_INTERVAL}s",
        },
        "rule_files": [rules],
        "scrape_configs": [
            {
                "job_name": "pyproxy",
                "static_configs": [
                    {"targets": [address], "labels": {"instance": node}}
                    for node, address in targets.items()
                ],
            }
        ],
    }


@contextmanager
def running(
    program: Program, data: Path, log: Path, scraping: Mapping[str, object] | None = None
) -> Iterator[Prometheus]:
    """Run a server over the data in a folder inside; without a configuration it adds none."""
    # Prometheus' pages show the paths of rule files relative to its own folder.
    path = log.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(scraping or {}))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = [
        f"--config.file={path.name}",
        f"--storage.tsdb.path={data.absolute()}",
        f"--web.listen-address={address}",
    ]
    with (
        log.open("wb") as output,
        _process([*program.command(), *flags], output.fileno(), log.parent),
    ):
        server = Prometheus(f"http://{address}")
        server.await_ready()
        yield server


@contextmanager
def _process(command: Sequence[str], output: int, folder: Path) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
