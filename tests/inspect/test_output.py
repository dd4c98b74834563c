"""Output of commands: the same columns in a pipe as on a terminal, and no escape sequences."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

import pytest

from pyproxy.commands import output, printer, services, status
from pyproxy.commands.explanation import show as show_explanation
from pyproxy.commands.output import Part
from pyproxy.dataplane.interface import TableUsage
from pyproxy.inspect.explain import Explanation, Result, Step
from pyproxy.inspect.services import EndpointView, FrontendView, PortView, Services, ServiceView
from pyproxy.inspect.snapshot import Repair, Sync
from pyproxy.inspect.status import InvalidObject, Status


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def unstyled(file: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())


def piped(view: Iterable[Part]) -> str:
    file = io.StringIO()
    printer.show(file, view)
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
    tables=(TableUsage("affinity4", 12, 262144), TableUsage("services4", 20_000)),
    last_sync=Sync(8264.0, 0.0012, 1, full=False),
    sync_error="the kernel refused it",
    last_repair=Repair(0.5, "nft (pid 4)", {"element": 3}),
    invalid=(
        InvalidObject(
            "Service", "shop/web", "spec.externalIPs[0]", "is not an address", "InvalidObject"
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
uptime          2 h 1 min
source          /etc/kubeconfig, oldest watch data 12 s ago
services        10,000
endpoints       100,000 in 10,001 slices
last sync       partial, 1.0 s ago, took 1.2 ms for 1 service; 40 syncs in total
sync error      the kernel refused it
pending         2 services
drift           1 repair, the last at 1970-01-01T00:00:00.500Z: 3 elements changed by nft (pid 4)
node port IPs   172.30.0.11
pod networks    not configured
tables          affinity4 12 of 262,144, services4 20,000
invalid         1 object
config          no problem found

INVALID   NAME       FIELD                 REASON          MESSAGE
Service   shop/web   spec.externalIPs[0]   InvalidObject   is not an address
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
                endpoints=(
                    EndpointView("10.244.1.11:8080", "node-a", "z", "all", ""),
                    EndpointView("10.244.2.11:8080", "node-b", "z", "", "not ready"),
                ),
                hints="",
            ),
        ),
        unmatched=(),
        invalid=(),
    )


def test_services_have_a_row_for_each_port() -> None:
    assert piped(services.show(Services((view_of_service(),)))) == (
        "NAMESPACE   NAME   PORT                            ADDRESSES"
        "                          POLICY                             ENDPOINTS   UNUSED BECAUSE\n"
        "shop        web    http 80/TCP (node port 30080)   10.96.0.20:80, 172.30.0.11:30080"
        "   internal Cluster, external Local   1/2         not ready\n"
    )


def test_one_service_in_detail() -> None:
    assert (
        piped(services.show(Services((view_of_service(),), named=True)))
        == """\
service         shop/web
policy          internal Cluster, external Local
affinity        none
source ranges   all clients

port http 80/TCP (node port 30080), IPv4
ADDRESS       PORT    SCOPE       USE
10.96.0.20    80      clusterIP   cluster
172.30.0.11   30080   nodePort    split

ENDPOINT           NODE     ZONE   USED BY       UNUSED BECAUSE
10.244.1.11:8080   node-a   z      all clients
10.244.2.11:8080   node-b   z      no clients    not ready
"""
    )


def test_an_explanation() -> None:
    steps = (
        Step("service", Result.OK, "shop/web exists"),
        Step("readiness", Result.FAILED, "none is ready", "see why", ("pod web-1: probe failed",)),
        Step("policy", Result.SKIPPED, "not programmed"),
    )
    found = Explanation("shop/web", ok=False, verdict="none is ready", fix="see why", steps=steps)
    assert (
        piped(show_explanation(found))
        == """\
    STEP        shop/web
✓   service     shop/web exists
✗   readiness   none is ready
                pod web-1: probe failed
-   policy      not programmed

none is ready
fix: see why
"""
    )


def test_control_characters_and_markup_in_names_are_text() -> None:
    hostile = "\x1b[31mred\x07[bold]x[/bold]\n"
    shown = piped(services.show(Services((view_of_service(hostile),))))
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[bold]x[/bold]" in shown
    assert len(shown.splitlines()) == 2


def test_only_a_terminal_has_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown() -> str:
        file = Terminal()
        printer.show(file, [output.text("well", output.GOOD)])
        return file.getvalue()

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in shown()


def test_a_terminal_has_the_same_text_as_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    for view in (
        lambda: status.show(STATUS),
        lambda: services.show(Services((view_of_service(),), named=True)),
        lambda: [output.StyledLine((output.text("a", output.DIM), output.text("b")))],
    ):
        file = Terminal()
        printer.show(file, view())
        lines = [line.rstrip() for line in unstyled(file).splitlines()]
        assert lines == piped(view()).splitlines()


def test_a_terminal_folds_wide_lines_and_cuts_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    file = Terminal()
    printer.show(file, [output.properties([("what", "x" * 100)])])
    assert file.getvalue().count("x") == 100
    assert max(map(len, unstyled(file).splitlines())) <= 40


def test_a_refreshed_view_replaces_the_one_before_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for file in (Terminal(), io.StringIO()):
        with printer.refreshing(file) as show:
            show([output.text("first")])
            show([output.text("second")])
        assert ("\x1b[2K" in file.getvalue()) is file.isatty()
        assert "second" in file.getvalue()
