"""Writes of other programs are detected, by notifications, by polling and by counting."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import Changes, Drift
from pyproxy.dataplane.iptables.base_rules import IptablesOptions
from pyproxy.dataplane.iptables.dataplane import IptablesDataplane
from pyproxy.dataplane.iptables.nft_writer import NftWriter
from pyproxy.model.address import Family
from pyproxy.model.flavour import Flavour
from pyproxy.xtables import kube_names
from pyproxy.xtables.programs import Programs
from tests.dataplane.iptables.programming import NODE, desired, held, program, programming, run
from tests.dataplane.nftables.test_dataplane import numbered

pytestmark = pytest.mark.kernel


def test_a_flushed_table_is_detected_and_repaired(namespace: Namespace, flavour: Flavour) -> None:
    routings = [numbered(each) for each in range(20)]
    with programming(namespace, flavour) as dataplane:
        program(namespace, dataplane, routings)
        assert namespace.call(dataplane.tick) is None
        reported: list[Drift | None] = []
        if flavour is Flavour.NFT:
            waiting = threading.Thread(target=lambda: reported.append(dataplane.wait_for_drift()))
            waiting.start()
            run(namespace, "iptables-nft", "-t", "nat", "-F")
            waiting.join(20)
        else:
            run(namespace, "iptables-legacy", "--wait", "-t", "nat", "-F")
            reported.append(namespace.call(dataplane.tick))
        assert isinstance(reported[0], Drift)
        assert program(namespace, dataplane, routings)
        assert held(namespace, flavour) == desired(routings, NODE, Family.IPV4)
        assert namespace.call(dataplane.tick) is None


def interfering(write: Callable[..., Any], flavour: Flavour) -> Callable[..., Any]:
    """Return `write` with another program's write right before it."""

    def writing(*arguments: object) -> object:
        run_here = [str(Programs(Family.IPV4, flavour)), "-t", "nat", "-A", kube_names.CANARY]
        subprocess.run([*run_here, "-j", "RETURN"], check=True)
        return write(*arguments)

    return writing


@pytest.mark.parametrize("interferes", [False, True])
def test_a_write_of_another_program_during_a_commit_is_detected(
    namespace: Namespace, flavour: Flavour, monkeypatch: pytest.MonkeyPatch, interferes: bool
) -> None:
    routings = [numbered(each) for each in range(3)]
    dataplane = namespace.call(lambda: IptablesDataplane(IptablesOptions(), flavour))
    reported: list[Drift | None] = []
    waiting = threading.Thread(target=lambda: reported.append(dataplane.wait_for_drift()))
    waiting.start()
    try:
        program(namespace, dataplane, routings)
        assert namespace.call(dataplane.tick) is None
        more = numbered(2, 4)
        plan = dataplane.plan(Changes({more.name: more, routings[0].name: None}))
        if interferes:
            writer, name = (NftWriter, "write") if flavour is Flavour.NFT else (Programs, "restore")
            monkeypatch.setattr(writer, name, interfering(getattr(writer, name), flavour))
        assert namespace.call(lambda: dataplane.commit(plan)) == ()
        polled = namespace.call(dataplane.tick)
        if interferes and flavour is Flavour.NFT:
            waiting.join(20)
    finally:
        dataplane.close()
    waiting.join(20)
    detected = [each for each in (polled, *reported) if each]
    assert detected == [Drift("")] * interferes
