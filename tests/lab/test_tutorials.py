"""Commands of tutorials against one `lab up`: they run, or one line refuses them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.lab.tutorials import FURTHER, TUTORIALS, Step
from tests.lab.up import Up
from tests.waiting import until

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl"),
]

_COMMAND = re.compile(r"kubectl (?:-\S+ )*((?:(?:config|create|rollout|set) )?[a-z-]+)")
_READS = re.compile(r"kubectl (describe|get|logs|rollout history)\b")


def commands(names: Iterable[str]) -> set[str]:
    """Return kubectl's commands in tutorials, such as "get" and "rollout undo"."""
    steps = [step for name in names for step in TUTORIALS[name]]
    return {found for step in steps for found in _COMMAND.findall(step.command)}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        every = metafunc.config.getoption("--all-tutorials")
        metafunc.parametrize("name", [each for each in TUTORIALS if every or each not in FURTHER])


class Shell:
    """Runs commands as a person with a kubeconfig does."""

    def __init__(self, up: Up, folder: Path) -> None:
        self._folder = folder
        self._admin = msgspec.json.decode((up.folder / "admin.conf").read_bytes())
        programs = folder / "bin"
        programs.mkdir()
        for name, site in (("node", "na"), ("outside", "ext")):
            script = programs / name
            script.write_text(f'#!/bin/sh\nexec ip netns exec {up.namespace(site).name} "$@"\n')
            script.chmod(0o755)
        self._env = os.environ | {
            "HOME": str(folder),
            "PATH": f"{programs}:{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def enter(self, namespace: str) -> None:
        """Run the next commands in a namespace of their own."""
        self._admin["contexts"][0]["context"]["namespace"] = namespace
        path = self._folder / f"{namespace}.conf"
        path.write_bytes(msgspec.json.encode(self._admin))
        self._env["KUBECONFIG"] = str(path)
        assert self.run(Step(f"kubectl create namespace {namespace}")) == ""

    def run(self, step: Step) -> str:
        """Run a step; return how it differs from what it should be, empty if it does not."""
        done = subprocess.run(
            ["sh", "-c", step.command],
            env=self._env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        output = done.stdout + done.stderr
        if (done.returncode != 0) is not step.refused:
            return f"{step.command}: status {done.returncode}: {output}"
        if not re.search(step.expected, output, re.MULTILINE):
            return f"{step.command}: no {step.expected!r} in {output}"
        return ""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    up = Up(tmp_path_factory.mktemp("up") / "state")
    try:
        up.await_ready()
        yield Shell(up, tmp_path_factory.mktemp("shell"))
    finally:
        up.process.terminate()
        up.process.wait(timeout=120)


def test_each_command_runs_by_default() -> None:
    assert commands(TUTORIALS) == commands(TUTORIALS.keys() - FURTHER)


def test_a_tutorial_runs_as_it_is_typed(shell: Shell, name: str) -> None:
    shell.enter(name)
    for step in TUTORIALS[name]:
        # The controllers may not have written yet what a command shows.
        if step.eventually or _READS.match(step.command):
            until(lambda: not shell.run(step), lambda: shell.run(step))  # noqa: B023
        else:
            assert shell.run(step) == ""
    # The next tutorial has the processors for itself.
    assert shell.run(Step(f"kubectl delete namespace {name}", "deleted")) == ""
