"""Which modules a mode needs, and that a machine without modprobe is no hindrance."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyproxy.agent import kernel_modules
from pyproxy.config import IptablesSettings, IpvsSettings, ProxyMode, Settings
from pyproxy.dataplane import modes
from pyproxy.model.flavour import Flavour

LEGACY = Settings("n", ProxyMode.IPTABLES, iptables=IptablesSettings(flavour=Flavour.LEGACY))
IPVS = Settings("n", ProxyMode.IPVS, ipvs=IpvsSettings(scheduler="mh"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings("n"), ()),
        (Settings("n", ProxyMode.IPTABLES), ()),
        (LEGACY, ("ip_tables", "ip6_tables")),
        (IPVS, ("nf_conntrack", "dummy", "ip_vs", "ip_vs_mh")),
    ],
)
def test_what_a_mode_needs(settings: Settings, expected: tuple[str, ...]) -> None:
    assert modes.of(settings.mode).modules(settings) == expected


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A modprobe that writes down what it is asked for, and can do nothing of it."""
    words, program = tmp_path / "words", tmp_path / "modprobe"
    program.write_text(f'#!/bin/sh\necho "$@" >>{words}\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return words


def test_modprobe_is_asked_once_for_all_and_need_not_be_able_to(asked: Path) -> None:
    kernel_modules.load(IPVS)
    assert asked.read_text() == "--all --quiet nf_conntrack dummy ip_vs ip_vs_mh\n"


def test_where_nothing_is_needed_nobody_is_asked(asked: Path) -> None:
    kernel_modules.load(Settings("n"))
    assert not asked.exists()


def test_a_machine_may_have_no_modprobe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level("DEBUG"):
        kernel_modules.load(LEGACY)
    assert caplog.messages == [
        "cannot load kernel modules ip_tables, ip6_tables: modprobe is not on PATH"
    ]
