"""docs/learn.md and docs/start.md against one `lab up`: their commands in order, and the output.

docs/learn.md describes the wildcard rule, which `wildcards` implements.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from tests.lab import up
from tests.waiting import until

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "learn.md"
STEPS = 10
LONGEST_COMMAND = 400.0
"""Seconds; the page's own timeouts are shorter."""

READ_PATIENCE = 300.0
"""Seconds until a change has reached the nodes, also on a loaded machine."""

_FENCE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_READ = re.compile(r"kubectl (?:-n \S+ )?(?:get|exec|logs) ")
_WAITING = "Waiting for "
_WILDCARDS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^(curl: \(\d+\)) .*", r"\1"),
        (r"\b\d+\.\d+\.\d+\.\d+\b", "ADDRESS"),
        (r"\bnode-[ab]\b", "NODE"),
        (
            r"-(?:[a-z0-9]{8,10}-)?(?=[a-z]*[0-9]|[bcdfghjklmnpqrstvwxz]{5}\b|[a-f]{5}\b)[a-z0-9]{5}\b",
            "-SUFFIX",
        ),
        (r"(?<= )(?:\d+[smhd])+(?= |$)", "AGE"),
        (r"\b80:3\d{4}/", "80:PORT/"),
        (r"^ *\d+ (?=\S+$)", "COUNT "),
        (r"\bcluster4-\d+\b", "cluster4-N"),
        (r" from \S+ namespace$", ""),
        (r" +", " "),
    )
)


class Command(NamedTuple):
    """A command of the page, and the output below it."""

    text: str
    output: str

    @property
    def only_reads(self) -> bool:
        return _READ.match(self.text) is not None and "<<" not in self.text


def commands(page: str) -> list[Command]:
    """Return the commands of the page's console blocks; one with `<<'END'` ends with `END`."""
    found = []
    for block in _FENCE.findall(page):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            end = "\nEND\n" if "<<'END'" in part.partition("\n")[0] else "\n"
            text, _, output = part.partition(end)
            found.append(Command(text + end.rstrip("\n"), output))
    return found


def wildcards(output: str) -> list[str]:
    """Return the lines of an output, sorted, with placeholders for the parts that vary."""
    lines = []
    for each in output.splitlines():
        line = each.rstrip()
        for pattern, replacement in _WILDCARDS:
            line = pattern.sub(replacement, line)
        if line.strip() and not line.startswith(_WAITING):
            lines.append(line.strip())
    return sorted(lines)


class Shell:
    """Runs commands in bash, each with the variables that the ones before it have set."""

    def __init__(self, folder: Path, kubeconfig: Path) -> None:
        self._folder = folder
        self._variables = folder / "variables"
        self._environment = os.environ | {"HOME": str(folder), "KUBECONFIG": str(kubeconfig)}

    def run(self, command: str) -> str:
        """Return what a command prints to both streams."""
        save = f"set -a; trap 'env -0 >{self._variables}' EXIT"
        done = subprocess.run(
            ["bash", "-c", f"{save}\n{command}"],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONGEST_COMMAND,
            check=False,
        )
        pairs = self._variables.read_text().split("\0")
        self._environment = dict(each.split("=", 1) for each in pairs if each)
        return done.stdout

    def check(self, command: Command) -> None:
        """Run a command until its output is the page's, or once if it changes something."""
        expected = wildcards(command.output)
        got = self.run(command.text)
        if wildcards(got) == expected:
            return

        def matches() -> bool:
            nonlocal got
            got = self.run(command.text)
            return wildcards(got) == expected

        def differs() -> str:
            return f"$ {command.text}\nthe page:\n{command.output}\nthe lab:\n{got}"

        assert command.only_reads, differs()
        until(matches, differs, patience=READ_PATIENCE, pause=0.2)


@pytest.mark.kernel
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_pages_print_what_their_commands_print(tmp_path: Path) -> None:
    with_output = [each for each in commands((DOCS / "start.md").read_text()) if each.output]
    assert with_output
    # Below /run, where the default folder is.
    with TemporaryDirectory(dir="/run") as run, up.running(Path(run) / "state") as lab:
        shell = Shell(tmp_path, lab.folder / "admin.conf")
        for command in [*commands(PAGE.read_text()), *with_output]:
            shell.check(command)


def test_the_page_has_ten_steps_with_commands() -> None:
    sections = PAGE.read_text().split("\n## ")[1:]
    assert [each.partition(".")[0] for each in sections] == [str(n + 1) for n in range(STEPS)]
    assert all(commands(each) for each in sections)


def test_a_block_is_split_into_commands_and_outputs() -> None:
    page = "a\n```console\n$ x\n1\n2\n$ y <<'END'\nin\nEND\nout\n$ z\n```\n"
    assert commands(page) == [
        Command("x", "1\n2\n"),
        Command("y <<'END'\nin\nEND", "out\n"),
        Command("z", ""),
    ]


@pytest.mark.parametrize(
    ("page", "lab"),
    [
        ("10.244.1.2 ready", "10.244.2.133 ready"),
        ("web-2bnz2bxcb7-58x79   1/1   3s", "web-tkz8bfcw2d-hxsnj  1/1  2m10s"),
        ("web-a253d   IPv4", "web-bcdfg   IPv4"),
        ("web-a253d", "web-decaf"),
        ("80:31563/TCP", "80:30001/TCP"),
        ("     28 1\n     18 2", "      7 1\n    118 2"),
        ("on node-a", "on node-b"),
        ("curl: (7) refused", "curl: (7) Failed to connect"),
        ("goto cluster4-2", "goto cluster4-11"),
        ("a\nb", "b\na"),
        ("done", "Waiting for it\ndone"),
        ('pod "load" deleted', 'pod "load" deleted from default namespace'),
    ],
)
def test_parts_that_vary_match(page: str, lab: str) -> None:
    assert wildcards(page) == wildcards(lab)


@pytest.mark.parametrize(
    ("page", "lab"),
    [
        ("1", "2"),
        ("1/1 Running", "0/1 Running"),
        ("     28 1", "     28 1\n      1 failed"),
        ("curl: (7) refused", "curl: (28) timed out"),
        ("ready: true", "ready: false"),
        ("10.0.0.1,10.0.0.2", "10.0.0.1"),
        ("green", "white"),
        ("web 8080", "web 80"),
    ],
)
def test_other_parts_do_not(page: str, lab: str) -> None:
    assert wildcards(page) != wildcards(lab)
