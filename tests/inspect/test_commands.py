"""What all commands have in common: help with exit statuses, formats, completion, mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pyproxy.cli import main
from pyproxy.commands.catalogue import COMMANDS
from tests.inspect.node import SITE, InspectedNode

MODULES = """
import sys
from pyproxy.cli import main
status = main(sys.argv[1:])
print(*sys.modules, file=sys.stderr)
sys.exit(status)
"""
SLOW = {"asyncio", "concurrent", "multiprocessing", "unittest", "xml"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_the_exit_statuses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert "exit statuses: 0 " in said
    assert "3 agent, API or kernel did not answer" in said


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_flags(
    shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert "--show-netlink" in script
    if shell == "bash":
        path = tmp_path / "completion"
        path.write_text(script)
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_without_agent_and_api_it_says_what_to_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--inspect-socket", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("none: reading API and kernel here")
    assert said[1].startswith("pyproxy: no API server is known: give --kubeconfig FILE")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "--watch", "0"], "--watch: '0' is not between 0.1 and 3600 seconds"),
        (["services", "a/b/c"], "'a/b/c' is not a Service: write NAMESPACE/NAME"),
        (["status", "-o", "xml"], "-o/--output: invalid choice: 'xml'"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"pyproxy: {message}")


@pytest.mark.kernel
def test_yaml_and_json_say_the_same(node: InspectedNode) -> None:
    words = ("services", "default/kubernetes")
    assert yaml.safe_load(node.command(*words, "-o", "yaml").out) == (
        node.command(*words, "-o", "json").json
    )


@pytest.mark.kernel
def test_curl_can_ask_too(node: InspectedNode) -> None:
    command = ["curl", "-s", "--unix-socket", node.socket, "http://localhost/status"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert '"mode":"nftables"' in done.stdout


@pytest.mark.kernel
@pytest.mark.parametrize(
    "words", ["status", "services default/kubernetes", "explain default/kubernetes"]
)
def test_who_asks_waits_for_no_library_that_the_answer_does_not_need(
    node: InspectedNode, words: str
) -> None:
    def loaded(*command: str) -> set[str]:
        run = (sys.executable, "-c", *command)
        done = node.cluster.network.namespace(SITE).run(run, check=False)
        return {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}

    asked = loaded(MODULES, *words.split(), "--inspect-socket", node.socket)
    asked -= loaded("import sys; print(*sys.modules, file=sys.stderr)")
    others = asked - sys.stdlib_module_names - {"typing_extensions"}
    assert others == {"pyproxy", "msgspec"}
    assert not asked & SLOW
