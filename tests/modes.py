"""Choose the modes in which the kernel suites run, and list or wipe a node's rules in each."""

from __future__ import annotations

import os

import pytest
from pyproxy_lab import modes
from pyproxy_lab.conformance.cases import Case
from pyproxy_lab.modes import LabMode
from pyproxy_lab.namespace import Namespace

VARIABLE = "PYPROXY_TEST_MODES"
KINDS = (modes.NFTABLES, modes.IPTABLES_LEGACY, modes.IPTABLES_NFT, modes.IPVS)
"""All modes, with each flavour of iptables mode as one."""


_IN_ONE_FLAVOUR = ("test_explain_firewalls.py",)
"""Modules about other programs' rules, which are those of both flavours in any mode."""


def chosen(names: str) -> tuple[LabMode, ...]:
    """Return the modes of a comma-separated list; empty means all that this machine can run."""
    if names:
        return tuple(map(modes.named, names.split(",")))
    return tuple(kind for kind in KINDS if kind.is_available)


def options(parser: pytest.Parser) -> None:
    parser.addoption(
        "--modes",
        default=os.environ.get(VARIABLE, ""),
        help=f"modes of the kernel suites, comma-separated (default ${VARIABLE}): "
        f"{', '.join(kind.name for kind in KINDS)}",
    )


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Run a test with the fixture `mode` in every chosen mode that its marker `modes` allows.

    `@pytest.mark.modes("nftables")` restricts a test to some modes.
    """
    if "mode" not in metafunc.fixturenames or _has_its_own(metafunc):
        return
    marker = metafunc.definition.get_closest_marker("modes")
    wanted = [
        pytest.param(kind, id=kind.name)
        for kind in _chosen_for(metafunc)
        if marker is None or kind.name in marker.args
    ]
    if not wanted:
        wanted = [pytest.param(modes.NFTABLES, id="none", marks=pytest.mark.modes_left_out)]
    metafunc.parametrize("mode", wanted, indirect=True, scope="module")


def _chosen_for(metafunc: pytest.Metafunc) -> tuple[LabMode, ...]:
    names = metafunc.config.getoption("--modes")
    found, path = chosen(names), metafunc.definition.path
    if names or not ("semantics" in path.parts or path.name in _IN_ONE_FLAVOUR):
        return found
    # Both flavours get the same rules, and the packet cases run in both. Use --modes for both here.
    return tuple(kind for kind in found if kind is not modes.IPTABLES_LEGACY)


def _has_its_own(metafunc: pytest.Metafunc) -> bool:
    """Return whether a test parametrizes its argument `mode` itself."""
    return any(
        "mode" in (marker.args[0].split(",") if isinstance(marker.args[0], str) else marker.args[0])
        for marker in metafunc.definition.iter_markers("parametrize")
    )


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that no chosen mode allows, and cases that exclude their mode.

    Both flavours of iptables mode get the same rules, so cases that `not_in_legacy` names run in
    one of them. Use --modes for both.
    """
    in_both = bool(config.getoption("--modes"))
    out = [item for item in items if not _applies(item, in_both)]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


def _applies(item: pytest.Item, in_both: bool) -> bool:
    if item.get_closest_marker("modes_left_out"):
        return False
    match getattr(getattr(item, "callspec", None), "params", {}):
        case {"mode": LabMode() as mode, "case": Case() as case}:
            if mode is modes.IPTABLES_LEGACY and not in_both:
                marker = item.get_closest_marker("not_in_legacy")
                if marker and case.name in marker.kwargs["cases"]:
                    return False
            return mode.proxy_mode.value not in case.without
    return True


def listing(mode: LabMode, namespace: Namespace) -> str:
    """List all that an agent has put into the kernel, as the node's own tools have it."""
    return "".join(namespace.run(command).stdout for command in mode.listing)


def wipe(mode: LabMode, namespace: Namespace) -> None:
    """Take all that an agent has put into the kernel away, as another program may do."""
    for command, text in mode.wipes:
        namespace.run(command, text=text, check=False)
