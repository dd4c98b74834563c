"""`pyproxy lab up`: what a person finds in a lab that is up, and its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyproxy_lab.apiserver.settings import DEFAULT_CLUSTER_IPS
from pyproxy_lab.topology import numbered_site
from pyproxy_lab.up.state import StateFolder

from tests.lab import up
from tests.lab.up import Up
from tests.namespaces import empty_namespace
from tests.waiting import until

pytestmark = pytest.mark.packets

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up.running(tmp_path_factory.mktemp("up") / "lab", "--page", "--dual-stack") as running:
        yield running
    assert running.leftovers() == []


def kubectl(lab: Up, *arguments: str) -> Any:
    environment = os.environ | {"KUBECONFIG": str(lab.folder / "admin.conf")}
    done = subprocess.run(
        ["kubectl", *arguments, "-o", "json"],
        env=environment,
        capture_output=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


def resolve(lab: Up, who: str, *names: str) -> dict[str, set[str]]:
    """Resolve names as programs of a namespace do, by its /etc/resolv.conf."""
    program = (
        "import json, socket, sys\n"
        "def found(name):\n"
        "    try: return sorted({e[4][0] for e in socket.getaddrinfo(name, None)})\n"
        "    except socket.gaierror: return []\n"
        "print(json.dumps({name: found(name) for name in sys.argv[1:]}))\n"
    )
    done = lab.namespace(who).run([sys.executable, "-c", program, *names])
    return {name: set(found) for name, found in json.loads(done.stdout).items()}


@needs_kubectl
def test_the_commands_that_it_prints_work(lab: Up) -> None:
    lines = [line.strip() for line in lab.text.splitlines() if line.startswith("    ")]
    assert lines[0].startswith('eval "$(')
    assert len(lines[1:]) == 3
    # A person types the second command when the pods respond.
    wait = "kubectl rollout status deployment/hello --timeout=60s"
    script = "\n".join(["set -e", *lines[:2], wait, *lines[2:]])
    done = subprocess.run(
        ["bash", "-c", script],
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Hostname: hello-" in done.stdout
    assert "no fault found" in done.stdout


def test_it_names_the_command_that_removes_it(lab: Up) -> None:
    assert f"lab down --state {lab.folder}` removes it all." in lab.text


@needs_kubectl
def test_kubectl_finds_both_nodes_ready(lab: Up) -> None:
    for number, node in enumerate(kubectl(lab, "get", "nodes")["items"], 1):
        site = numbered_site(number)
        assert node["metadata"]["name"] == site.node
        assert node["spec"]["podCIDRs"] == list(site.pod_networks)
        ready = [each for each in node["status"]["conditions"] if each["type"] == "Ready"]
        assert ready[0]["status"] == "True"


@needs_kubectl
def test_kubectl_runs_commands_beside_each_agent(lab: Up) -> None:
    environment = os.environ | {"KUBECONFIG": str(lab.folder / "admin.conf")}
    command = ["pyproxy", "services", "kube-system/kube-dns"]
    for site in ("na", "nb"):
        done = subprocess.run(
            ["kubectl", "-n", "kube-system", "exec", f"pyproxy-{site}", "--", *command],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert "10.96.0.10" in done.stdout


@needs_kubectl
def test_kubectl_copies_files(lab: Up, tmp_path: Path) -> None:
    before, there, after = (tmp_path / name for name in ("before", "there", "after"))
    before.write_text("content")
    environment = os.environ | {"KUBECONFIG": str(lab.folder / "admin.conf")}
    for copied in ([before, f"pyproxy-na:{there}"], [f"pyproxy-na:{there}", after]):
        command = ["kubectl", "-n", "kube-system", "cp", *map(str, copied)]
        subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60)
    assert after.read_text() == "content"


def test_env_prints_one_shell_command(lab: Up) -> None:
    done = up.lab("env", lab.folder)
    assert done.returncode == 0
    assert done.stdout == f"export KUBECONFIG={lab.folder}/admin.conf\n"


def test_the_kubeconfig_is_for_its_owner_alone_and_of_a_loopback_address(lab: Up) -> None:
    path = lab.folder / "admin.conf"
    for each in (path, lab.folder / "kubeconfig"):
        assert each.stat().st_mode & 0o777 == 0o600
    (cluster,) = yaml.safe_load(path.read_text())["clusters"]
    assert cluster["cluster"]["server"].startswith("https://127.0.0.1:")
    assert cluster["cluster"]["certificate-authority-data"]


def test_a_second_lab_is_refused_in_one_line(lab: Up) -> None:
    second = up.lab("up", lab.folder)
    assert second.returncode == 2
    assert second.stderr == (
        f"pyproxy: a lab is up already (process {lab.pid}, {lab.folder}): "
        "end it with `pyproxy lab down`\n"
    )


def test_pages_of_all_nodes_are_reached_from_the_machine(lab: Up) -> None:
    for site in ("node-a", "node-b"):
        (url,) = [
            line.split()[-1]
            for line in lab.text.splitlines()
            if line.startswith(f"page of {site}: ")
        ]
        with urllib.request.urlopen(url, timeout=60) as page:
            assert site in page.read().decode()


@pytest.mark.parametrize("who", ["na", "nb"])
def test_names_are_resolved_through_the_service(lab: Up, who: str) -> None:
    name = "kubernetes.default.svc.cluster.local"
    first, _ = (str(network[1]) for network in DEFAULT_CLUSTER_IPS)
    found = resolve(lab, who, name, "kubernetes", "kube-dns.kube-system", "nothing", "example.org")
    assert found[name] == found["kubernetes"] == {first}
    assert found["kube-dns.kube-system"] == {"10.96.0.10"}
    assert found["nothing"] == found["example.org"] == set()


def test_the_outside_client_has_no_names(lab: Up) -> None:
    assert resolve(lab, "ext", "kubernetes.default.svc.cluster.local") == {
        "kubernetes.default.svc.cluster.local": set()
    }


def test_conformance_cases_hold_in_its_network(lab: Up) -> None:
    """All of them hold too; these are for services of both families and node ports."""
    cases = Path(__file__).parents[1] / "conformance" / "cases"
    chosen = [str(cases / name) for name in ("01-cluster-ip.yaml", "06-families.yaml")]
    done = subprocess.run(
        [sys.executable, "-m", "pyproxy_lab.conformance", "--lab", str(lab.folder), *chosen],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 failed" in done.stdout
    assert not [path for path in lab.namespaces() if path.name.endswith("-a1")]


def test_an_agent_that_ends_is_started_again(lab: Up) -> None:
    def agents() -> set[str]:
        found = up.programs_of(lab.pid)
        return {line.split()[1] for line in found if "node-b" in line}

    (agent,) = agents()
    os.kill(int(agent.rstrip(":")), signal.SIGKILL)
    until(lambda: agents() - {agent}, "another agent")
    assert "the agent of node-b has ended with status -9: starting it again" in lab.text
    until(lambda: resolve(lab, "nb", "kubernetes")["kubernetes"], "names on node-b")


@pytest.mark.parametrize(
    ("number", "flags"),
    [
        (signal.SIGINT, ("--nodes", "1", "--proxy", "kube-proxy")),
        (signal.SIGTERM, ("--nodes", "3", "--mode", "iptables")),
        (signal.SIGHUP, ("--nodes", "1")),
    ],
)
def test_it_leaves_nothing_after(tmp_path: Path, number: signal.Signals, flags: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # The command kube-proxy of this installation.
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        lab = Up(tmp_path / "lab", flags)
    lab.await_ready()
    assert lab.namespaces()
    # kube-proxy sends no token without TLS.
    secure = any("secure.conf" in program for program in up.programs_of(lab.pid))
    assert secure == ("--proxy" in flags)
    assert lab.end(number) == 0, lab.text
    assert lab.leftovers() == []


def test_down_ends_it_and_is_idempotent(tmp_path: Path) -> None:
    lab = Up(tmp_path / "lab", ["--nodes", "1"])
    lab.await_ready()
    assert lab.namespaces()
    done = up.lab("down", lab.folder)
    assert (done.returncode, done.stdout) == (0, "the lab is removed\n")
    assert lab.process.wait(timeout=60) == 0
    assert lab.leftovers() == []
    assert up.lab("down", lab.folder).stdout == "no lab is up\n"
    assert up.lab("env", lab.folder).returncode == 2


def test_a_proxy_that_cannot_serve_is_an_error_with_its_last_lines(tmp_path: Path) -> None:
    command = "sh -c 'echo no such thing; exit 3'"
    lab = Up(tmp_path / "lab", ["--proxy", command])
    assert lab.process.wait(timeout=60) == 1
    assert "status 3" in lab.text
    assert "no such thing" in lab.text
    assert lab.leftovers() == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nodes", "0"], "--nodes 0: give a number from 1 to 10"),
        (["--nodes", "11"], "--nodes 11: give a number from 1 to 10"),
        (["--proxy", "/nowhere"], "--proxy /nowhere: not a program that can be run"),
        (["--proxy", "'"], "--proxy ': No closing quotation"),
        (["--proxy", "sh", "--page"], "--page: only pyproxy has a page"),
    ],
)
def test_a_bad_flag_is_one_line(tmp_path: Path, flags: list[str], message: str) -> None:
    lab = Up(tmp_path / "lab", flags)
    assert lab.process.wait(timeout=60) == 2
    assert lab.text.startswith(f"pyproxy: {message}")
    assert len(lab.text.splitlines()) == 1
    assert lab.leftovers() == []


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "letter").write_text("dear")
    for command in ("up", "down"):
        done = up.lab(command, folder)
        assert done.returncode == 2
        assert "holds other files" in done.stderr
    assert (folder / "letter").read_text() == "dear"


@pytest.mark.parametrize("mode", [0o700, 0o1755])
def test_an_empty_folder_that_no_lab_made_is_left_alone(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    folder.chmod(mode)
    done = up.lab("down", folder)
    assert (done.returncode, done.stdout) == (0, "no lab is up\n"), done.stderr
    assert folder.stat().st_mode & 0o7777 == mode


def test_a_lab_in_a_folder_that_a_person_made_leaves_it_empty(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    lab = Up(folder, ["--nodes", "1"])
    lab.await_ready()
    assert up.lab("down", folder).stdout == "the lab is removed\n"
    assert lab.process.wait(timeout=60) == 0
    assert list(folder.iterdir()) == []
    assert lab.leftovers() == [str(folder)]


@pytest.mark.parametrize("name", ["lab", ".lab.1-1"])
def test_a_folder_of_a_lab_that_was_killed_early_or_late_is_removed(
    tmp_path: Path, name: str
) -> None:
    with StateFolder(tmp_path / "lab") as folder:
        assert folder.made_by_lab()
    folder.path.rename(tmp_path / name)
    done = up.lab("down", folder.path)
    assert (done.returncode, done.stdout) == (0, "the lab is removed\n"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_links_that_were_there_before_a_lab_are_not_its_own() -> None:
    with empty_namespace("links") as namespace:
        namespace.ip(["link add v-other type veth peer name other"])
        before = namespace.call(up.links_of_labs)
        assert [name for _, name in before] == ["v-other"]
        namespace.ip(["link add v-a1 type veth peer name eth0"])
        (new,) = namespace.call(up.links_of_labs) - before
        assert new[1] == "v-a1"
        # A link that replaces another one of its name is a new link.
        namespace.ip(["link del v-other", "link add v-other type veth peer name other"])
        assert {name for _, name in namespace.call(up.links_of_labs) - before} == {
            "v-other",
            "v-a1",
        }
