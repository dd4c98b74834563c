"""Processes beside the tail's agent that show what the machine and the API server alone do.

    python -m bench.tail_control sleep CPU
    python -m bench.tail_control watch URL ACCEPT

The first only sleeps on one processor, with real-time priority, and prints the `Stalls` in which it
could not run. No other program's work delays it, only the kernel and the hypervisor. The second
watches EndpointSlices in the format ACCEPT and prints when it read each new pod's address. Both
print `ready` when they have begun, and one line of JSON when their input ends.
"""

from __future__ import annotations

import os
import re
import select
import sys
import threading
import time
import urllib.request
from contextlib import suppress

import msgspec

SHORTEST = 0.002
"""Seconds that a sleep must last too long to be a stall."""

_SLEEP = 0.002
_PRIORITY = 50
_READ = 1 << 16
# The byte behind it shows that an address is complete, in JSON and in protobuf.
_FRESH = re.compile(rb"10\.20[0-7]\.\d{1,3}\.\d{1,3}(?=[^\d.])")
_LONGEST = 16
_PATH = "/apis/discovery.k8s.io/v1/endpointslices"

Stalls = list[tuple[float, float]]
"""The monotonic times between which a sleeping process should have run and did not."""


def main() -> None:
    if sys.argv[1] == "sleep":
        result: object = _sleep(int(sys.argv[2]))
    else:
        result = _watch(*sys.argv[2:])
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
    sys.stdout.buffer.flush()
    # The watch's thread blocks in a read.
    os._exit(0)


def _sleep(processor: int) -> Stalls:
    stalls: Stalls = []
    os.sched_setaffinity(0, {processor})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        due = time.monotonic() + _SLEEP
        time.sleep(_SLEEP)
        now = time.monotonic()
        if now - due >= SHORTEST:
            stalls.append((due, now))
    return stalls


def _watch(url: str, accept: str) -> dict[str, float]:
    read: dict[str, float] = {}
    began = threading.Event()

    with urllib.request.urlopen(f"{url}{_PATH}?limit=1") as response:
        version = msgspec.json.decode(response.read())["metadata"]["resourceVersion"]

    def follow() -> None:
        watch = urllib.request.Request(
            f"{url}{_PATH}?watch=true&resourceVersion={version}", headers={"Accept": accept}
        )
        with suppress(OSError), urllib.request.urlopen(watch) as response:
            began.set()
            rest = b""
            while chunk := response.read1(_READ):
                now = time.monotonic()
                rest += chunk
                for pod in _FRESH.findall(rest):
                    read.setdefault(pod.decode(), now)
                rest = rest[-_LONGEST:]

    threading.Thread(target=follow, daemon=True).start()
    began.wait()
    print("ready", flush=True)
    sys.stdin.read()
    return dict(read)


if __name__ == "__main__":
    main()
