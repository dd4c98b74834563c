"""Every command of docs/start.md is there, with the files, flags and images that it names.

`tests/lab/test_learn.py` runs the commands of its first section in a lab.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence

import pytest
import yaml

import pyproxy
from tests.deploy.manifests import tool
from tests.docs.commands import agent, plugin
from tests.docs.pages import DOCS, ROOT
from tests.lab.test_learn import commands

PAGE = (DOCS / "start.md").read_text()
SECTIONS = {each.partition("\n")[0]: each for each in PAGE.split("\n## ")[1:]}
IMAGE = f"registry.example/pyproxy:{pyproxy.__version__}"
COMMANDS = [
    pytest.param(command.text, id=f"{section.split()[0]} {command.text[:50]}")
    for section, text in SECTIONS.items()
    for command in commands(text)
]


def test_each_way_has_commands() -> None:
    ways = [section for section, text in SECTIONS.items() if commands(text)]
    assert ways == ["One machine, no cluster", "kubeadm", "kind"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_there(command: str) -> None:
    for part in command.split(" | "):
        program, *arguments = shlex.split(part.removeprefix("sudo "))
        if program in CHECKS:
            CHECKS[program](arguments)
        else:
            assert os.access(ROOT / program, os.X_OK), program
            assert not arguments
    for image in re.findall(r"registry\.example/\S*:\S*", command):
        assert image.rpartition("=")[2] == IMAGE


def make(arguments: Sequence[str]) -> None:
    target, *variables = arguments
    text = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:.* ## ", text, re.MULTILINE)
    for each in variables:
        assert re.search(rf"^{each.partition('=')[0]} \?=", text, re.MULTILINE), each


def engine(arguments: Sequence[str]) -> None:
    assert list(arguments) == ["push", IMAGE]


def shell_eval(arguments: Sequence[str]) -> None:
    """Check the command in `eval "$(...)"`."""
    (substituted,) = arguments
    program, *rest = shlex.split(substituted.removeprefix("$(").removesuffix(")"))
    CHECKS[program](rest)


def kubectl(arguments: Sequence[str]) -> None:
    """Look the command and its flags up in kubectl's own help, and check the command after `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    own, inside = arguments[:end], arguments[end + 1 :]
    values = {own[n + 1] for n, word in enumerate(own) if word in {"-n", "--context"}}
    words = [word for word in own if not word.startswith("-") and word not in values]
    verb = words[: 2 if words[0] in {"create", "rollout", "set"} else 1]
    text = help_of(*verb, "--help")
    assert f"  kubectl {' '.join(verb)} " in text
    known = re.findall(r"^\s+(?:(-\w), )?(--[a-z-]+)=", text + help_of("options"), re.MULTILINE)
    flags = {word.partition("=")[0] for word in own if word.startswith("-") and word != "-"}
    assert flags <= {name for names in known for name in names}
    if inside[:1] == ["pyproxy"]:
        agent(inside[1:])
    if verb == ["kustomize"]:
        done = subprocess.run([tool("kubectl"), *own], cwd=ROOT, capture_output=True, check=True)
        assert f"image: {IMAGE.partition('/')[2]}\n" in done.stdout.decode()


def help_of(*words: str) -> str:
    done = subprocess.run([tool("kubectl"), *words], capture_output=True, text=True, check=True)
    return done.stdout


def kind(arguments: Sequence[str]) -> None:
    cluster = yaml.safe_load((ROOT / "deploy/kind/cluster.yaml").read_text())
    assert list(arguments) == ["delete", "cluster", "--name", cluster["name"]]


CHECKS: Mapping[str, Callable[[Sequence[str]], None]] = {
    "make": make,
    "docker": engine,
    "kubectl": kubectl,
    "kind": kind,
    "eval": shell_eval,
    **dict.fromkeys(("grep", "sed"), lambda _: None),
    ".venv/bin/pyproxy": agent,
    ".venv/bin/kubectl-pyproxy": plugin,
}
"""The check of the arguments, by program. Other programs are scripts of this repository."""


def test_the_image_after_sed_is_the_one_that_was_pushed() -> None:
    (command,) = (each for each in commands(PAGE) if " | sed " in each.text)
    edit = shlex.split(command.text.split(" | ")[1])
    line = f"image: {IMAGE.partition('/')[2]}"
    done = subprocess.run(edit, input=line, capture_output=True, text=True, check=True)
    assert done.stdout == f"image: {IMAGE}"
