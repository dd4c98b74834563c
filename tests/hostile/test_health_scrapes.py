"""Scrapes: many of them, and slow readers, cost neither memory nor the answers of probes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tests.hostile.health_node import LIMITS, METRICS, NODE, OTHER_POD, POD, HealthNode, health_node
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel

READERS = 60


class Large(Collector):
    """Many series, which are read only while `gate` is set."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.reads = 0

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("large", "Many series", labels=("number",))
        for number in range(10_000):
            family.add_metric((f"{'x' * 500}{number}",), 1.0)
        self.reads += 1
        self.gate.wait(PATIENCE)
        yield family


@pytest.fixture
def here() -> Iterator[HealthNode]:
    with health_node() as made:
        yield made


@contextmanager
def scrapers(here: HealthNode, count: int) -> Iterator[list[socket.socket]]:
    """Request the metrics as often from the pod, and read nothing."""
    with ExitStack() as stack:

        def connect() -> list[socket.socket]:
            found = []
            for _ in range(count):
                scraper = socket.create_connection((NODE, METRICS), PATIENCE, (POD, 0))
                stack.enter_context(scraper)
                # A small window, so that the response does not fit in the kernel's buffers.
                scraper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                scraper.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
                found.append(scraper)
            return found

        yield here.pod.call(connect)


def test_a_scrape_in_progress_delays_no_probe(here: HealthNode) -> None:
    large = Large()
    large.gate.clear()
    here.metrics.register(large)
    # Its first collection is that of the registration.
    before = large.reads
    with scrapers(here, 20):
        until(lambda: large.reads > before)
        assert [here.get(here.node) for _ in range(8)] == [200] * 8
        assert [here.get(here.pod, source=OTHER_POD) for _ in range(8)] == [200] * 8
        # One at a time, although twenty clients wait.
        assert large.reads == before + 1
        large.gate.set()


def test_slow_readers_hold_few_responses(here: HealthNode) -> None:
    here.metrics.register(Large())
    with scrapers(here, READERS):
        share = LIMITS.public.responding_share
        until(lambda: here.dropped("share", "metrics") >= READERS - share)
        assert here.open_connections("metrics") <= share
        assert here.get(here.pod, "/metrics", source=OTHER_POD) == 200
        assert here.get(here.node, "/metrics") == 200
        assert here.get(here.node) == 200
