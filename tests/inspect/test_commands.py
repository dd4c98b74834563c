"""Common properties of commands: help, exit statuses, formats, completion, usage errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pyproxy.cli import main
from pyproxy.commands.registry import COMMANDS
from tests.inspect.node import SITE, InspectedNode

MODULES = """
import sys
from pyproxy.cli import main
status = main(sys.argv[1:])
print(*sys.modules, file=sys.stderr)
sys.exit(status)
"""
NO_SOCKET = "--inspect-socket: it is empty: give the path of an agent's socket"
SLOW = {"asyncio", "concurrent", "multiprocessing", "unittest", "xml"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_the_exit_statuses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert "exit statuses: 0 " in printed
    assert "3 agent, API server or kernel did not respond" in printed


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_has_all_commands_and_flags(
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


def test_without_agent_and_api_server_the_error_names_the_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--inspect-socket", str(tmp_path / "none")]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert printed[0].endswith("none: reading API server and kernel instead")
    assert printed[1].startswith("pyproxy: no API server: give --kubeconfig FILE")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--inspect-socket="],
            "--inspect-socket: it is empty: give the path of an agent's socket",
        ),
        (["--no-agent"], "--no-agent: only an agent has what this command shows: omit the flag"),
    ],
    ids=["no-socket", "no-agent"],
)
@pytest.mark.parametrize("command", ["status --slow", "status --slow -o json", "watch"])
def test_a_command_that_needs_an_agent_rejects_flags_that_exclude_one(
    command: str, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), *flags]) == 2
    assert capsys.readouterr().err.splitlines() == [f"pyproxy: {message}"]


@pytest.mark.parametrize(
    "command",
    ["status", "services", "explain x/y", "diff", "top", "trace --to 10.96.0.1:80", "watch"],
)
def test_an_agent_cannot_be_required_without_a_socket(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), "--require-agent", "--inspect-socket="]) == 2
    assert capsys.readouterr().err.splitlines() == [f"pyproxy: {NO_SOCKET}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "--watch", "0"], "--watch: '0' is not between 0.1 and 3600 seconds"),
        (["services", "a/b/c"], "'a/b/c' is not a Service name: use NAMESPACE/NAME"),
        (["status", "-o", "xml"], "-o/--output: invalid choice: 'xml'"),
    ],
)
def test_a_usage_error_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"pyproxy: {message}")


@pytest.mark.kernel
def test_yaml_and_json_have_the_same_content(node: InspectedNode) -> None:
    words = ("services", "default/kubernetes")
    assert yaml.safe_load(node.command(*words, "-o", "yaml").out) == (
        node.command(*words, "-o", "json").json
    )


@pytest.mark.kernel
def test_curl_can_query_the_socket(node: InspectedNode) -> None:
    command = ["curl", "-s", "--unix-socket", node.socket, "http://localhost/status"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert '"mode":"nftables"' in done.stdout


@pytest.mark.kernel
@pytest.mark.parametrize(
    "words", ["status", "services default/kubernetes", "explain default/kubernetes"]
)
def test_a_query_to_the_agent_imports_only_the_libraries_it_needs(
    node: InspectedNode, words: str
) -> None:
    def loaded(*command: str) -> set[str]:
        run = (sys.executable, "-c", *command)
        done = node.cluster.network.namespace(SITE).run(run, check=False)
        return {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}

    modules = loaded(MODULES, *words.split(), "--inspect-socket", node.socket)
    modules -= loaded("import sys; print(*sys.modules, file=sys.stderr)")
    others = modules - sys.stdlib_module_names - {"typing_extensions"}
    assert others == {"pyproxy", "msgspec"}
    assert not modules & SLOW
