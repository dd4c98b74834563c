"""The commands of pyproxy and of its plugin, on all pages: their arguments are right."""

from __future__ import annotations

import re

import pytest

from pyproxy.errors import UsageError
from tests.docs.commands import check, shown
from tests.docs.pages import PAGES, ROOT

COMMANDS = sorted(
    {
        (str(page.relative_to(ROOT)), command)
        for page in PAGES
        for command in shown(page.read_text())
        if re.search(r"(^| )pyproxy [a-z]", command)
    }
)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_has_right_arguments(page: str, command: str) -> None:
    assert check(command), page


@pytest.mark.parametrize(
    "command",
    [
        "kubectl pyproxy status --nods 1",
        "pyproxy status --slowest",
        "kubectl -n kube-system exec POD -- pyproxy status --slowest",
        "sudo pyproxy lab up --node 3",
    ],
)
def test_a_wrong_argument_is_found(command: str) -> None:
    with pytest.raises(UsageError):
        check(command)
