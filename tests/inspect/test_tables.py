"""How answers look: the same columns in a pipe as on a terminal, and nothing that steers it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

import pytest

from pyproxy.commands import output, parts, services, status
from pyproxy.commands.explain import show as show_explanation
from pyproxy.commands.parts import Part
from pyproxy.dataplane.interface import TableUsage
from pyproxy.inspect.explain import Explanation, Mark, Step
from pyproxy.inspect.services import BackendView, FrontendView, PortView, Services, ServiceView
from pyproxy.inspect.snapshot import Repair, Sync
from pyproxy.inspect.status import InvalidObject, Status


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def unstyled(file: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())


def piped(view: Iterable[Part]) -> str:
    file = io.StringIO()
    output.show(file, view)
    return file.getvalue()


STATUS = Status(
    version="0.1.0",
    mode="nftables",
    node="node-a",
    zone="zone-1",
    started=1000.0,
    now=8265.0,
    health="healthy",
    healthy=True,
    source="/etc/kubeconfig",
    source_age=12.0,
    services=10_000,
    slices=10_001,
    endpoints=100_000,
    pending=2,
    syncs=40,
    repairs=1,
    node_port_addresses=("172.30.0.11",),
    pod_networks=(),
    fill=(TableUsage("affinity4", 12, 262144), TableUsage("services4", 20_000)),
    last_sync=Sync(8264.0, 0.0012, 1, whole=False),
    last_repair=Repair(0.5, "nft (pid 4)", {"element": 3}),
    invalid=(
        InvalidObject(
            "Service", "shop/web", "spec.externalIPs[0]", "is no address", "InvalidObject"
        ),
    ),
)


def test_a_status() -> None:
    assert (
        piped(status.show(STATUS))
        == """\
node            node-a (zone zone-1)
mode            nftables
health          healthy
running for     2 h 1 min
objects from    /etc/kubeconfig, heard of 12 s ago
services        10,000
endpoints       100,000 in 10,001 slices
last sync       1.0 s ago, took 1.2 ms for 1 service; 40 syncs in all
waiting         2 services
drift           1 repair, the last at 1970-01-01T00:00:00.500Z: 3 elements that nft (pid 4) changed
node ports on   172.30.0.11
pods are        not told by address
tables          affinity4 12 of 262,144, services4 20,000
set aside       1 object

SET ASIDE   NAME       FIELD                 REASON     WHAT
Service     shop/web   spec.externalIPs[0]   SetAside   is no address
"""
    )


def view_of_service(name: str = "web") -> ServiceView:
    return ServiceView(
        namespace="shop",
        name=name,
        internal_policy="Cluster",
        external_policy="Local",
        affinity_seconds=0,
        source_ranges=(),
        health_check_port=0,
        programmed=True,
        ports=(
            PortView(
                name="http",
                family="IPv4",
                protocol="TCP",
                port=80,
                node_port=30080,
                frontends=(
                    FrontendView("clusterIP", "10.96.0.20", 80, "cluster"),
                    FrontendView("nodePort", "172.30.0.11", 30080, "split"),
                ),
                backends=(
                    BackendView("10.244.1.11:8080", "node-a", "z", "everybody", ""),
                    BackendView("10.244.2.11:8080", "node-b", "z", "", "not ready"),
                ),
                hints="",
            ),
        ),
        elsewhere=(),
        problems=(),
    )


def test_a_line_for_each_port() -> None:
    assert piped(services.show(Services((view_of_service(),)))) == (
        "NAMESPACE   NAME   PORT                            ADDRESSES"
        "                          POLICY                    ENDPOINTS   NOT USED\n"
        "shop        web    http 80/TCP (node port 30080)   10.96.0.20:80, 172.30.0.11:30080"
        "   Cluster, external Local   1/2         not ready\n"
    )


def test_one_service_in_full() -> None:
    assert (
        piped(services.show(Services((view_of_service(),), named=True)))
        == """\
service         shop/web
policy          internal Cluster, external Local
affinity        none
source ranges   everybody

port http 80/TCP (node port 30080), IPv4
ADDRESS       KIND              USE
10.96.0.20    clusterIP :80     cluster
172.30.0.11   nodePort :30080   split

ENDPOINT           NODE     ZONE   USED BY     WHY NOT
10.244.1.11:8080   node-a   z      everybody
10.244.2.11:8080   node-b   z      nobody      not ready
"""
    )


def test_an_explanation() -> None:
    steps = (
        Step("service", Mark.TICK, "shop/web exists"),
        Step("readiness", Mark.CROSS, "none is ready", "see why", ("pod web-1: probe failed",)),
        Step("policy", Mark.SKIPPED, "nobody is left"),
    )
    found = Explanation("shop/web", well=False, verdict="none is ready", fix="see why", steps=steps)
    assert (
        piped(show_explanation(found))
        == """\
    STEP        shop/web
✓   service     shop/web exists
✗   readiness   none is ready
                pod web-1: probe failed
-   policy      nobody is left

none is ready
what to do: see why
"""
    )


def test_a_name_cannot_steer_a_terminal_or_the_markup() -> None:
    hostile = "\x1b[31mred\x07[bold]x[/bold]\n"
    shown = piped(services.show(Services((view_of_service(hostile),))))
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[bold]x[/bold]" in shown
    assert len(shown.splitlines()) == 2


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown() -> str:
        file = Terminal()
        output.show(file, [parts.text("well", parts.GOOD)])
        return file.getvalue()

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in shown()


def test_a_terminal_shows_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    for view in (
        lambda: status.show(STATUS),
        lambda: services.show(Services((view_of_service(),), named=True)),
        lambda: [parts.Line((parts.text("a", parts.DIM), parts.text("b")))],
    ):
        file = Terminal()
        output.show(file, view())
        told = [line.rstrip() for line in unstyled(file).splitlines()]
        assert told == piped(view()).splitlines()


def test_a_terminal_folds_what_is_too_wide_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    file = Terminal()
    output.show(file, [parts.facts([("what", "x" * 100)])])
    assert file.getvalue().count("x") == 100
    assert max(map(len, unstyled(file).splitlines())) <= 40


def test_a_view_takes_the_place_of_the_one_before_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for file in (Terminal(), io.StringIO()):
        with output.in_place(file) as show:
            show([parts.text("first")])
            show([parts.text("second")])
        assert ("\x1b[2K" in file.getvalue()) is file.isatty()
        assert "second" in file.getvalue()
