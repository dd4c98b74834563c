"""All pods: one server that sends the address that it was reached at, and closes.

    python -m pyproxy_lab.bench.pods PORT

It prints `ready` once it listens, and ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys


def main() -> None:
    """Serve until standard input ends."""
    listener = socket.create_server(("", int(sys.argv[1])), backlog=1024)
    print("ready", flush=True)
    while True:
        readable, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in readable:
            return
        with contextlib.suppress(OSError):  # the client has closed the connection
            connection, _ = listener.accept()
            with connection:
                connection.send(connection.getsockname()[0].encode())


if __name__ == "__main__":
    main()
