"""The kustomization and the Helm command of docs/tasks/install.md render what the page says."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

from tests.deploy.manifests import objects, the, tool
from tests.docs.pages import DOCS, ROOT

PAGE = (DOCS / "tasks" / "install.md").read_text()


def block(first_words: str) -> str:
    """Return the indented block that begins with some words."""
    (found,) = re.findall(
        rf"^(    {re.escape(first_words)}.*?)\n\n", PAGE, re.DOTALL | re.MULTILINE
    )
    return re.sub(r"^ {4}", "", found, flags=re.MULTILINE)


def test_the_kustomization_prints_what_the_page_shows(tmp_path: Path) -> None:
    (tmp_path / "pyproxy").symlink_to(ROOT)
    own = tmp_path / "own"
    own.mkdir()
    (own / "kustomization.yaml").write_text(block("resources:"))
    command, _, shown = block("$ kubectl kustomize .").partition("\n")
    tool("kubectl")
    done = subprocess.run(
        ["sh", "-c", command.removeprefix("$ ")],
        cwd=own,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{shown}\n"


def test_helm_renders_the_image_and_the_address_of_the_command() -> None:
    program, verb, *arguments = shlex.split(block("helm install").replace("\\\n", ""))
    assert (program, verb) == ("helm", "install")
    done = subprocess.run(
        [tool("helm"), "template", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    pods = the("DaemonSet", objects(done.stdout))["spec"]["template"]["spec"]
    (container,) = pods["containers"]
    assert container["image"].startswith("registry.example/pyproxy:")
    assert "https://10.0.0.1:6443" in done.stdout
