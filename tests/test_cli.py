import errno
import json
import logging
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import pytest

import pyproxy
from pyproxy import logs
from pyproxy.agent.shutdown import ShutdownSignal
from pyproxy.cli import kube_proxy, main
from pyproxy.commands import registry
from pyproxy.config import Settings
from pyproxy.errors import PermissionKernelError, RejectedError, UsageError
from pyproxy.redaction import KNOWN

COMMANDS = f"run, cleanup, {', '.join(registry.COMMANDS)}, lab, bench"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", f"no command is given: use one of {COMMANDS}"),
        ("serve", f"'serve' is not a command: use one of {COMMANDS}"),
        ("--v=1 run", f"'--v=1' is not a command: use one of {COMMANDS}"),
        ("run --kubeconfg=x", "unknown flag --kubeconfg: did you mean --kubeconfig?"),
        ("run --master-url x", "unknown flag --master-url: did you mean --master?"),
        ("run --kube=x", "unknown flag --kube: did you mean --kubeconfig?"),
        ("run -x", "unknown flag -x: see pyproxy run --help"),
        ("run --zzzzzz", "unknown flag --zzzzzz: see pyproxy run --help"),
        ("version --v=1", "unknown flag --v: see pyproxy version --help"),
        ("version --outptu=json", "unknown flag --outptu: did you mean --output?"),
        ("status --wath", "unknown flag --wath: did you mean --watch?"),
        ("lab demo --mod=x", "unknown flag --mod: see pyproxy lab --help"),
        ("run now", "'now' is one argument too many: flags begin with --"),
        (
            "run --masquerade-all true",
            "'true' is one argument too many: flags begin with --",
        ),
        ("run --v", "--v: its value is missing: write --v=VALUE"),
        ("run --v=x", "--v: 'x' is not a whole number from 0 to 2147483647"),
        (
            "run --masquerade-all=yes",
            "--masquerade-all: 'yes' is not a boolean: use true or false",
        ),
        (
            "run --iptables-masquerade-bit=32",
            "--iptables-masquerade-bit: '32' is not a whole number from 0 to 31",
        ),
        (
            "run --proxy-mode=userspace",
            "--proxy-mode: 'userspace' is not one of nftables, iptables, ipvs",
        ),
        (
            "run --detect-local-mode=Auto",
            "--detect-local-mode: 'Auto' is not one of ClusterCIDR, NodeCIDR, BridgeInterface, "
            "InterfaceNamePrefix",
        ),
        (
            "run --detect-local-mode=BridgeInterface",
            "--detect-local-mode: BridgeInterface needs --pod-bridge-interface: give it",
        ),
        (
            "run --detect-local-mode=InterfaceNamePrefix",
            "--detect-local-mode: InterfaceNamePrefix needs --pod-interface-name-prefix: give it",
        ),
        (
            "run --pod-bridge-interface=a-bridge-too-far",
            "--pod-bridge-interface: 'a-bridge-too-far' is not an interface name: use up to 15 "
            "bytes, without spaces, slashes, quotes and asterisks",
        ),
        (
            "run --pod-interface-name-prefix=vethvethvethvet",
            "--pod-interface-name-prefix: 'vethvethvethvet' is not an interface name: use up to "
            "14 bytes, without spaces, slashes, quotes and asterisks",
        ),
        (
            "run --pod-bridge-interface=br*",
            "--pod-bridge-interface: 'br*' is not an interface name: use up to 15 bytes, without "
            "spaces, slashes, quotes and asterisks",
        ),
        (
            "run --cluster-cidr=10.0.0.0/8,10.1.0.0/16",
            "--cluster-cidr: '10.0.0.0/8,10.1.0.0/16' has more than one IPv4 CIDR: give one a "
            "family",
        ),
        (
            "run --cluster-cidr=10.0.0.0",
            "--cluster-cidr: '10.0.0.0' is not a CIDR: write it as 10.244.0.0/16 or fd10::/16",
        ),
        (
            "run --nodeport-addresses=primary,eth0",
            "--nodeport-addresses: 'eth0' is not a CIDR: use CIDRs, primary, all or localhost",
        ),
        ("run --bind-address=here", "--bind-address: 'here' is not an IP address"),
        (
            "run --healthz-bind-address=localhost:1",
            "--healthz-bind-address: 'localhost:1' is not an address with a port ('localhost' is "
            "not an IP address): write it as 0.0.0.0:10256 or [::]:10256, or 0 for none",
        ),
        (
            "run --metrics-bind-address=0.0.0.0:65536",
            "--metrics-bind-address: '0.0.0.0:65536' is not an address with a port ('65536' is "
            "not a whole number from 0 to 65535): write it as 0.0.0.0:10249 or [::]:10249, or 0 "
            "for none",
        ),
        (
            "run --sync-period=30",
            "--sync-period: '30' is not a duration: write it as 500ms, 30s or 1h0m0s",
        ),
        ("run --sync-period=0s", "--sync-period: '0s' is too short: use 1ms or more"),
        ("run --min-sync-period=-1s", "--min-sync-period: '-1s' is too short: use 0s or more"),
        (
            "run --min-sync-period=1m",
            "--min-sync-period: it is longer than --sync-period: make it shorter, or that longer",
        ),
        (
            "run --manifests=d --kubeconfig=f",
            "--manifests: --kubeconfig names another source: leave one out",
        ),
        ("run --config=/none", "--config /none: cannot be read: No such file or directory"),
        (
            "run --write-config-to=/none/f",
            "--write-config-to /none/f: cannot be written: No such file or directory",
        ),
        (
            "run --oom-score-adj=low",
            "--oom-score-adj: 'low' is not a whole number from -1000 to 1000",
        ),
        ("run --kube-api-qps=fast", "--kube-api-qps: 'fast' is not a number"),
        (
            "run --feature-gates=A",
            "--feature-gates: 'A' is not a setting: write it as NAME=true",
        ),
        ("run --version=yes", "--version: 'yes' is not a boolean: use true or false"),
        ("run --version --v=x", "--v: 'x' is not a whole number from 0 to 2147483647"),
        ("run --vmodule=a", "--vmodule: 'a' is not a verbosity of a file: write it as FILE=2"),
        ("run --vmodule=a=b", "--vmodule: 'b' is not a whole number from 0 to 2147483647"),
        (
            "run --healthz-port=http",
            "--healthz-port: 'http' is not a whole number from 0 to 65535",
        ),
        ("run --logging-format=xml", "--logging-format: 'xml' is not one of text, json"),
        (
            "run --log-json-info-buffer-size=big",
            "--log-json-info-buffer-size: 'big' is not a quantity: write it as 65536 or 64Ki",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"pyproxy: {message}\n")


class RememberingAgent:
    """An agent that only remembers what it was told, and ends as `outcome` says."""

    def __init__(self) -> None:
        self.outcome: Settings | int | BaseException | None = None
        self.calls: list[tuple[str, str]] = []

    def end(self, what: str, settings: Settings, *_: object) -> Settings | int | None:
        self.calls.append((what, settings.node_name))
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> RememberingAgent:
    agent = RememberingAgent()
    for what in ("run", "cleanup", "initialize"):
        monkeypatch.setattr(f"pyproxy.agent.wiring.{what}", partial(agent.end, what))
    return agent


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        ("run --hostname-override A", "run"),
        ("cleanup --hostname-override A", "cleanup"),
        ("run --cleanup --hostname-override A", "cleanup"),
        ("run --cleanup=false --hostname-override A", "run"),
        ("run --init-only --hostname-override A", "initialize"),
        ("run --init-only --cleanup --hostname-override A", "cleanup"),
    ],
)
def test_commands_reach_the_agent_with_their_settings(
    agent: RememberingAgent, arguments: str, called: str
) -> None:
    agent.outcome = None if called == "run" else 0
    assert main(arguments.split()) == 0
    assert agent.calls == [(called, "a")]


@pytest.mark.parametrize(
    ("outcome", "status", "message"),
    [
        (None, 0, ""),
        (UsageError("kubeconfig f: no such file"), 2, "pyproxy: kubeconfig f: no such file\n"),
        (PermissionKernelError("no right", errno.EPERM), 2, "pyproxy: no right\n"),
        (RejectedError("no table", errno.EINVAL), 1, "pyproxy: no table\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=repr,
)
def test_how_the_agent_ends_is_the_exit_status(
    agent: RememberingAgent,
    outcome: BaseException | None,
    status: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    agent.outcome = outcome
    assert main(["run"]) == status
    assert capsys.readouterr().err == message


@pytest.mark.usefixtures("agent")
def test_flags_without_effect_are_one_log_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--profiling", "--kube-api-qps=50", "--kube-api-burst=100"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.split(maxsplit=1)[1] == (
        "WARNING flags without effect: "
        "--kube-api-burst, --kube-api-qps (a few watches need no limit); "
        "--profiling (pyproxy has no profiling pages)"
    )


def test_how_a_cleanup_ends_is_the_exit_status(agent: RememberingAgent) -> None:
    agent.outcome = 1
    assert main(["cleanup"]) == 1


def test_an_agent_that_ends_with_other_settings_is_run_with_them(
    agent: RememberingAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = [Settings("b"), Settings("c"), None]

    def run(settings: Settings, read: Callable[[], Settings], _: ShutdownSignal) -> Settings | None:
        agent.end("run", settings)
        assert read().node_name == "a"
        return outcomes.pop(0)

    monkeypatch.setattr("pyproxy.agent.wiring.run", run)
    assert main(["run", "--hostname-override=a"]) == 0
    assert [name for _, name in agent.calls] == ["a", "b", "c"]


def test_a_signal_between_two_sets_of_settings_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run(
        settings: Settings, read: Callable[[], Settings], ending: ShutdownSignal
    ) -> Settings | None:
        seen.append(settings.node_name)
        ending.on_shutdown(lambda: seen.append("told"))
        os.kill(os.getpid(), signal.SIGTERM)
        return Settings("b")

    monkeypatch.setattr("pyproxy.agent.wiring.run", run)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["run", "--hostname-override=a"]) == 0
    assert seen == ["a", "told"]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("arguments", "takeover"), [([], True), (["--takeover=false"], False), (["--v=1"], True)]
)
def test_as_kube_proxy_it_has_the_flags_of_run_and_takes_over(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], takeover: bool
) -> None:
    seen = []
    monkeypatch.setattr("pyproxy.agent.wiring.run", lambda settings, *_: seen.append(settings))
    assert kube_proxy(arguments) == 0
    assert [settings.takeover for settings in seen] == [takeover]


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_version(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"pyproxy {pyproxy.__version__}\n"


def test_version_in_json_names_kubernetes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["version"] == pyproxy.__version__
    assert found["kubernetesVersion"] == f"v{pyproxy.KUBERNETES_VERSION}"
    assert found["python"].endswith(platform.python_version())
    assert found["platform"].startswith("linux/")


@pytest.mark.parametrize("program", [kube_proxy, lambda flags: main(["run", *flags])])
@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--version"], "Kubernetes v1.36.2 (pyproxy 0.1.0)\n"),
        (["--version=t", "--v=2"], "Kubernetes v1.36.2 (pyproxy 0.1.0)\n"),
        # The file is not read.
        (["--config=/none", "--cleanup", "--version=true"], "Kubernetes v1.36.2 (pyproxy 0.1.0)\n"),
        (["--version=raw"], 'version.Info{Major:"1", Minor:"36", GitVersion:"v1.36.2", '),
    ],
)
def test_kube_proxys_version_names_kubernetes(
    program: Callable[[Sequence[str]], int],
    flags: list[str],
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert program(flags) == 0
    out = capsys.readouterr().out
    assert out.startswith(text)
    assert out.count("\n") == 1


@pytest.mark.usefixtures("agent")
def test_version_false_is_no_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert kube_proxy(["--version=false"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", [[], ["run"], ["cleanup"], ["version"]])
def test_help_names_everything_and_needs_no_library_of_the_agent(command: list[str]) -> None:
    program = (
        "import sys\n"
        "from pyproxy.cli import main\n"
        "try:\n"
        f"    main({[*command, '--help']!r})\n"
        "except SystemExit as end:\n"
        "    heavy = {'kubernetes', 'prometheus_client', 'pyroute2', 'asyncio', 'aiohttp'}\n"
        "    print(sorted(heavy & sys.modules.keys()), end.code)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert run.stdout.endswith("[] 0\n")
    assert run.stderr == ""
    if command in (["run"], ["cleanup"]):
        assert "--cluster-cidr" in run.stdout
        assert "--ipvs-scheduler" in run.stdout


def test_what_needs_no_api_server_does_not_wait_for_its_client() -> None:
    program = (
        "import sys, pyproxy.agent.wiring\nprint({'kubernetes', 'watchfiles'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "set()\n"


@pytest.mark.parametrize("command", ["status", "services", "explain"])
def test_a_question_to_an_agent_waits_for_no_library_of_the_agent(command: str) -> None:
    program = (
        "import sys, pyproxy.dataplane.modes\n"
        "from pyproxy.commands import registry\n"
        f"registry.COMMANDS[{command!r}].load()\n"
        "heavy = {'kubernetes', 'urllib3', 'prometheus_client', 'asyncio'}\n"
        "print(heavy & sys.modules.keys())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout == "set()\n"


@pytest.mark.parametrize(
    ("verbosity", "shown"),
    [
        (0, ["own info", "library warning"]),
        (3, ["own info", "library warning"]),
        (4, ["own debug", "own info", "library warning"]),
        (6, ["own debug", "own info", "library debug", "library warning"]),
    ],
)
def test_log_lines_grow_with_verbosity(
    verbosity: int, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(verbosity)
    own, library = logging.getLogger("pyproxy.part"), logging.getLogger("library")
    own.debug("own debug")
    own.info("own info")
    library.debug("library debug")
    library.warning("library warning")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == shown
    assert [line.split()[1] for line in lines] == [
        {"debug": "DEBUG", "info": "INFO", "warning": "WARNING"}[text.split()[1]] for text in shown
    ]


def json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_json_lines_have_kube_proxys_names(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(4, "json")
    own = logging.getLogger("pyproxy.part")
    own.info("first\nline of %s", "two", extra=logs.about("Service", "shop/web"))
    own.debug("detail")
    try:
        raise ValueError("bad")
    except ValueError:
        own.exception("cannot serve")
    info, debug, error = json_lines(capsys)
    assert abs(cast(float, info.pop("ts")) / 1000 - time.time()) < 3600
    assert re.fullmatch(r"tests/test_cli\.py:\d+", str(info.pop("caller")))
    assert info == {
        "msg": "first\\nline of two",
        "level": "info",
        "v": 0,
        "object": "Service shop/web",
    }
    assert debug["v"] == 4
    assert (error["err"], error["level"]) == ("ValueError('bad')", "error")
    assert "v" not in error
    assert "raise ValueError" in str(error["stacktrace"])


def test_json_lines_have_no_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(0, "json")
    KNOWN.remember('se"cret-token-0123')
    log = logging.getLogger("pyproxy.part")
    log.info("header %s", 'se"cret-token-0123')
    try:
        raise ValueError('se"cret-token-0123')
    except ValueError:
        log.exception('failed for se"cret-token-0123')
    text = capsys.readouterr().err
    assert "cret-token" not in text
    assert len(text.splitlines()) == 2


@pytest.mark.usefixtures("agent")
def test_warnings_about_flags_have_the_format_that_was_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "--logging-format=json", "--profiling"]) == 0
    (line,) = json_lines(capsys)
    assert line["msg"] == "flags without effect: --profiling (pyproxy has no profiling pages)"
