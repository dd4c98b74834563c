"""Check that the workflows run what there is; zizmor and actionlint check the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .manifests import ROOT

WORKFLOWS = {path.name: path for path in (ROOT / ".github/workflows").glob("*.yml")}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def jobs(path: Path) -> Iterator[dict[str, Any]]:
    yield from yaml.safe_load(path.read_text())["jobs"].values()


def text(path: Path) -> str:
    """Return all commands of a workflow."""
    return "\n".join(step.get("run", "") for job in jobs(path) for step in job.get("steps", ()))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_commands_exist(name: str) -> None:
    commands = text(WORKFLOWS[name])
    made = set(re.findall(r"\bmake ([a-z-]+)", commands))
    assert made <= TARGETS
    scripts = re.findall(r"\b(?:deploy|tools)/\S+\.(?:sh|py)", commands)
    assert made or scripts
    for script in scripts:
        assert (ROOT / script).exists(), script


def test_ci_runs_all_checks() -> None:
    commands = text(WORKFLOWS["ci.yml"])
    wanted = {"check", "docs", "test", "test-vm", "dist-check", "image", "image-check"}
    assert set(re.findall(r"\bmake ([a-z-]+)", commands)) >= wanted
    (bounds,) = (job for job in jobs(WORKFLOWS["ci.yml"]) if "BOUNDS" in str(job))
    assert {each["bounds"] for each in bounds["strategy"]["matrix"]["include"]} <= TARGETS


@pytest.mark.parametrize("name", WORKFLOWS)
def test_no_job_has_rights_or_time_that_it_does_not_state(name: str) -> None:
    workflow = yaml.safe_load(WORKFLOWS[name].read_text())
    assert workflow["permissions"] == {}
    assert "concurrency" in workflow
    for job in workflow["jobs"].values():
        assert "permissions" in job
        assert "uses" in job or job["timeout-minutes"] <= 300


def test_nothing_is_published_before_all_tests_have_passed() -> None:
    found = yaml.safe_load(WORKFLOWS["release.yml"].read_text())["jobs"]

    def before(name: str) -> set[str]:
        needs = found[name].get("needs", [])
        direct = {needs} if isinstance(needs, str) else set(needs)
        return direct.union(*map(before, direct))

    for name, job in found.items():
        if "write" in job["permissions"].values():
            assert before(name) >= {"notes", "ci", "kind"}, name
            assert "environment" in job
