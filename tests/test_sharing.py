"""The groups of tests that stay with one worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import LONGEST
from tests.sharing import group


@pytest.mark.parametrize(
    ("nodeid", "stays_with"),
    [
        ("tests/test_cli.py::test_version", "tests/test_cli.py"),
        ("tests/test_cli.py::test_version[main-arguments0]", "tests/test_cli.py"),
        ("tests/a/test_b.py::test_case[nftables-a case]", "tests/a/test_b.py[nftables]"),
        ("tests/a/test_b.py::test_case[a-b-iptables-nft]", "tests/a/test_b.py[iptables-nft]"),
        ("tests/a/test_b.py::test_case[iptables-legacy]", "tests/a/test_b.py[iptables-legacy]"),
        ("tests/a/test_b.py::test_case[ipvs: a case]", "tests/a/test_b.py"),
        ("tests/a/test_b_vm.py::test_case[ipvs-a case]", "vm"),
        ("tests/c/test_d_vm.py::test_case", "vm"),
    ],
)
def test_tests_stay_together_by_module_and_mode(nodeid: str, stays_with: str) -> None:
    assert group(nodeid) == stays_with


def test_the_modules_that_start_first_exist() -> None:
    root = Path(__file__).parents[1]
    assert [module for module in LONGEST if not (root / module).exists()] == []
