"""The API server's process: `python -m bench.apiserver SERVICES ENDPOINTS`.

It prints its URL once it holds everything, and ends when its standard input does.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bench.objects import Size, objects
from pyproxy.lab.apiserver.server import ApiServer
from pyproxy.lab.apiserver.settings import Settings
from pyproxy.lab.namespace import LabError


@contextmanager
def api_server(size: Size) -> Iterator[str]:
    """Run a server in a process of its own; its URL. Raises LabError where it does not start."""
    command = [sys.executable, "-m", "bench.apiserver", str(size.services), str(size.endpoints)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise LabError(f"the API server's process ended with status {process.wait()}")
        try:
            yield url
        finally:
            process.stdin.close()


def main() -> None:
    services, endpoints = map(int, sys.argv[1:])
    with ApiServer.running(Settings()) as server:
        server.load(objects(Size(services, endpoints)))
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
