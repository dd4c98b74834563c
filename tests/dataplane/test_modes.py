"""Each proxy mode is declared once: nothing else compares modes, and a new dataplane touches three
files outside its package.
"""

from __future__ import annotations

import ast
import filecmp
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.config.modes import ProxyMode
from pyproxy.dataplane.modes import MODES
from tests.namespaces import empty_namespace
from tests.waiting import until

ROOT = Path(__file__).parents[2]
PACKAGE = "pyproxy/dataplane/toy"
DECLARATIONS = {
    "pyproxy/config/modes.py",
    "pyproxy/config/flags.py",
    "pyproxy/dataplane/modes.py",
    *(f"pyproxy/dataplane/{mode.value}/mode.py" for mode in ProxyMode),
    "lab/pyproxy_lab/modes.py",
}
"""The files that may tell modes apart. A flag declares the modes in which it has an effect."""

NAMES = {mode.value for mode in ProxyMode} | {"iptables-legacy", "iptables-nft"}
MEMBERS = {mode.name for mode in ProxyMode} | {"IPTABLES_LEGACY", "IPTABLES_NFT"}

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  ipFamilies: [IPv4]
  ports: [{name: http, protocol: TCP, port: 80, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: shop
  labels: {kubernetes.io/service-name: web}
addressType: IPv4
ports: [{name: http, protocol: TCP, port: 8080}]
endpoints: [{addresses: [10.244.1.11], conditions: {ready: true}}]
"""
PROGRAMMED = {"shop/web": ["10.96.0.1:80 to 10.244.1.11:8080"]}


def test_every_mode_is_declared_in_the_package_of_its_name() -> None:
    assert list(MODES) == list(ProxyMode)
    for mode in MODES.values():
        assert mode.make.__module__ == f"pyproxy.dataplane.{mode.name}.mode"


def _is_mode(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=str() as name):
            return name in NAMES
        case ast.Attribute(attr=member) | ast.Name(id=member):
            return member in MEMBERS
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
            return any(map(_is_mode, parts))
    return False


def _comparisons(tree: ast.AST) -> Iterator[int]:
    """Yield the line of each comparison with a mode, and of each choice by one."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, comparators=others):
                if any(map(_is_mode, (left, *others))):
                    yield node.lineno
            case ast.MatchValue(value=value):
                if _is_mode(value):
                    yield node.lineno
            case ast.Dict(keys=keys):
                if any(key is not None and _is_mode(key) for key in keys):
                    yield node.lineno


def test_nothing_but_the_declarations_compares_modes() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for folder in ("pyproxy", "lab")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in DECLARATIONS
        for line in _comparisons(ast.parse(path.read_text()))
    ]
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "mode is ProxyMode.IPVS",
        "'ipvs' == name",
        "name in ('iptables', 'nftables')",
        "{ProxyMode.IPVS: 1}[mode]",
        "mode is not modes.IPTABLES_NFT",
        "match mode:\n    case ProxyMode.IPVS:\n        pass",
    ],
)
def test_a_comparison_of_modes_is_found(code: str) -> None:
    assert list(_comparisons(ast.parse(code)))


def _add_toy(root: Path) -> None:
    """Add the toy dataplane to a copy of the tree, as its author would."""
    source = Path(__file__).parent / "toy"
    shutil.copytree(source, root / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    edits: Mapping[str, tuple[tuple[str, str], ...]] = {
        "pyproxy/config/modes.py": (
            ('    IPVS = "ipvs"\n', '    IPVS = "ipvs"\n    TOY = "toy"\n'),
        ),
        "pyproxy/dataplane/modes.py": (
            (
                "\nMODES:",
                "from pyproxy.dataplane.toy.mode import MODE as TOY\n\nMODES:",
            ),
            ("IPVS)", "IPVS, TOY)"),
        ),
        "docs/concepts/design.md": (("## ipvs mode", "## toy mode\n\n## ipvs mode"),),
    }
    for name, changes in edits.items():
        text = (root / name).read_text()
        for before, after in changes:
            assert text.count(before) == 1, f"{name}: {before!r}"
            text = text.replace(before, after)
        (root / name).write_text(text)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the tree with the toy dataplane."""
    root = tmp_path / "tree"
    for name in ("pyproxy", "docs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    _add_toy(root)
    return root


def _touched(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        original = ROOT / name
        if path.is_file() and not (original.exists() and filecmp.cmp(path, original, False)):
            yield name


def test_a_new_dataplane_touches_three_files_outside_its_package(tree: Path) -> None:
    outside = [name for name in _touched(tree) if not name.startswith(PACKAGE)]
    assert outside == [
        "docs/concepts/design.md",
        "pyproxy/config/modes.py",
        "pyproxy/dataplane/modes.py",
    ]


class Toy:
    """The command line of a tree with the toy dataplane, in a network namespace of its own."""

    def __init__(self, tree: Path, here: Namespace) -> None:
        self._here = here
        self.state = tree.parent / "state.json"
        manifests = tree.parent / "manifests"
        manifests.mkdir()
        (manifests / "web.yaml").write_text(SERVICE)
        self._flags = [
            *("--proxy-mode=toy", "--hostname-override=n", f"--manifests={manifests}"),
            f"--inspect-socket={tree.parent / 'toy.sock'}",
        ]
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(tree),
            "PYPROXY_TOY_STATE": str(self.state),
        }

    def _command(self, *words: str) -> list[str]:
        # -P keeps the folder of this test run, with its own pyproxy, off the path.
        return [sys.executable, "-P", "-m", "pyproxy", *words, *self._flags]

    def start(self) -> subprocess.Popen[bytes]:
        return self._here.call(
            lambda: subprocess.Popen(self._command("run"), env=self._environment)
        )

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self._here.call(
            lambda: subprocess.run(
                self._command(*words),
                env=self._environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
        )

    @property
    def programmed(self) -> object:
        return json.loads(self.state.read_text()) if self.state.exists() else None


@pytest.mark.kernel
def test_a_new_dataplane_is_chosen_planned_inspected_and_cleaned_up(tree: Path) -> None:
    with empty_namespace("toy") as here:
        toy = Toy(tree, here)
        planned = toy.run("diff", "--no-agent")
        assert (planned.returncode, "write shop/web" in planned.stdout) == (1, True)
        process = toy.start()
        try:
            until(lambda: toy.programmed == PROGRAMMED)
            assert "toy" in toy.run("status").stdout
            assert toy.run("diff").returncode == 0
            toy.state.write_text("{}")
            explained = toy.run("explain", "shop/web")
            assert "10.96.0.1:80 to 10.244.1.11:8080" in explained.stdout
        finally:
            process.terminate()
            process.wait()
        assert toy.programmed is not None
        assert toy.run("cleanup").returncode == 0
        assert toy.programmed is None
