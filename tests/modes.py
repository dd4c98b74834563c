"""The modes that the kernel suites run in, and what a test does to a node in each of them."""

from __future__ import annotations

import os

import pytest
from pyproxy_lab import modes
from pyproxy_lab.conformance.cases import Case
from pyproxy_lab.modes import LabMode
from pyproxy_lab.namespace import Namespace

VARIABLE = "PYPROXY_TEST_MODES"
KINDS = (modes.NFTABLES, modes.IPTABLES_LEGACY, modes.IPTABLES_NFT, modes.IPVS)
"""All modes, each flavour of one by itself; the first is the one that tests know best."""


def chosen(names: str) -> tuple[LabMode, ...]:
    """Read a list of names with commas between; empty means all that this machine can run."""
    if names:
        return tuple(map(modes.named, names.split(",")))
    return tuple(kind for kind in KINDS if kind.is_available)


def options(parser: pytest.Parser) -> None:
    parser.addoption(
        "--modes",
        default=os.environ.get(VARIABLE, ""),
        help=f"which modes the kernel suites run in, with commas between (or {VARIABLE}): "
        f"{', '.join(kind.name for kind in KINDS)}",
    )


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a mode in each that was chosen, or in those of its marker `modes`.

    `@pytest.mark.modes("nftables")` is for what makes sense in some modes only.
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
    found = chosen(names)
    if names or "semantics" not in metafunc.definition.path.parts:
        return found
    # Both flavours are given the same rules, and the packet cases run in both: who changes what is
    # written asks for the other one too.
    return tuple(kind for kind in found if kind is not modes.IPTABLES_LEGACY)


def _has_its_own(metafunc: pytest.Metafunc) -> bool:
    """Tell whether a test gives its argument `mode` values of its own."""
    return any(
        "mode" in (marker.args[0].split(",") if isinstance(marker.args[0], str) else marker.args[0])
        for marker in metafunc.definition.iter_markers("parametrize")
    )


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what makes sense in none of the modes that were chosen, or not in its own."""
    out = [item for item in items if not _makes_sense(item)]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


def _makes_sense(item: pytest.Item) -> bool:
    if item.get_closest_marker("modes_left_out"):
        return False
    match getattr(getattr(item, "callspec", None), "params", {}):
        case {"mode": LabMode() as mode, "case": Case() as case}:
            return mode.proxy_mode.value not in case.without
    return True


def listing(mode: LabMode, namespace: Namespace) -> str:
    """List all that an agent has put into the kernel, as the node's own tools have it."""
    return "".join(namespace.run(command).stdout for command in mode.listing)


def wipe(mode: LabMode, namespace: Namespace) -> None:
    """Take all that an agent has put into the kernel away, as another program may do."""
    for command, text in mode.wipes:
        namespace.run(command, text=text, check=False)
