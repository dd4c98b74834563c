"""The agent as a process with a configuration file: kubeadm's, a changing one, a wrong one."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.cluster import kubeconfig

from tests.agent.live import Process, Stage, addresses, ask, endpoint_slice, service
from tests.waiting import PATIENCE

pytestmark = pytest.mark.packets

WEB = "10.96.7.1"
DATA = Path(__file__).parents[1] / "data"
KUBE_PROXY = "import sys; from pyproxy.cli import kube_proxy; sys.exit(kube_proxy())"
AS_MOUNTED = """
mount -t tmpfs none /var/lib && mount -t tmpfs none /run &&
mkdir -p /var/lib/kube-proxy /run/secrets/kubernetes.io/serviceaccount &&
cp "$0/config.conf" "$0/kubeconfig.conf" /var/lib/kube-proxy/ &&
cp "$0/token" "$0/ca.crt" /run/secrets/kubernetes.io/serviceaccount/ &&
exec "$@"
"""
"""A shell script that mounts the ConfigMap and service account in folder $0 as a pod has them."""


def load_web(server: ApiServer) -> None:
    server.load(
        [service("web", WEB, node_port=30080), endpoint_slice("web", addresses("a1", "b1"))]
    )


def page(stage: Stage, path: str) -> str:
    def fetch() -> str:
        with urlopen(f"http://127.0.0.1:10249{path}", timeout=PATIENCE) as reply:
            return str(reply.read().decode())

    return stage.here.call(fetch)


def configz(stage: Stage) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page(stage, "/configz"))["kubeproxy.config.k8s.io"]
    return found


def kubeadms_kubeconfig(server: str) -> str:
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    cluster = {"certificate-authority": f"{account}/ca.crt", "server": server}
    context = {"cluster": "default", "namespace": "default", "user": "default"}
    user = {"tokenFile": f"{account}/token"}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "default", "cluster": cluster}],
            "contexts": [{"name": "default", "context": context}],
            "current-context": "default",
            "users": [{"name": "default", "user": user}],
        }
    )


def test_kubeadms_config_map_and_command_start_it_unchanged(stage: Stage, tmp_path: Path) -> None:
    with stage.server() as server:
        load_web(server)
        (tmp_path / "config.conf").write_text((DATA / "kubeadm-config.yaml").read_text())
        (tmp_path / "kubeconfig.conf").write_text(kubeadms_kubeconfig(server.url))
        (tmp_path / "token").write_text("t")
        (tmp_path / "ca.crt").write_text("")
        command = [
            *("unshare", "--mount", "sh", "-c", AS_MOUNTED, str(tmp_path)),
            *(sys.executable, "-c", KUBE_PROXY),
            *("--config=/var/lib/kube-proxy/config.conf", "--hostname-override=node-a"),
        ]
        with Process(stage.here, command, tmp_path / "agent.log") as agent:
            agent.does(lambda: stage.health() == 200, "the first commit")
            assert stage.probe(f"{WEB}:80", who="a2").reached.keys() == {"a1", "b1"}
            # As it was while kube-proxy served the mode that this file leaves open.
            assert stage.probe("172.30.0.11:30080", who="ext").reached.keys() == {"a1", "b1"}
            assert stage.probe("127.0.0.1:30080", who="na").reached.keys() == {"a1", "b1"}
            assert configz(stage)["clusterCIDR"] == "10.244.0.0/16,fd10::/16"
            assert page(stage, "/proxyMode") == "nftables"
            assert "without effect" not in agent.said()


class Configured:
    """An agent with a file of its own, which tests write anew."""

    def __init__(self, stage: Stage, folder: Path, url: str) -> None:
        (folder / "kubeconfig").write_text(json.dumps(kubeconfig(url, "")))
        self._folder = folder
        self._fields: dict[str, Any] = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": str(folder / "kubeconfig")},
            "clusterCIDR": "10.244.0.0/16,fd10::/16",
        }
        self.path = folder / "config.conf"
        self.write()
        command = [
            *(sys.executable, "-m", "pyproxy", "run", "--hostname-override=node-a"),
            *(f"--config={self.path}", f"--inspect-socket={folder}/na.sock"),
        ]
        self.agent = Process(stage.here, command, folder / "agent.log")

    def write(self, **fields: Any) -> None:
        self._fields |= fields
        self.write_text(json.dumps(self._fields))

    def write_text(self, text: str) -> None:
        draft = self._folder / "draft"
        draft.write_text(text)
        os.rename(draft, self.path)


def test_a_change_is_applied_without_a_gap(stage: Stage, tmp_path: Path) -> None:
    with stage.server() as server:
        load_web(server)
        configured = Configured(stage, tmp_path, server.url)
        with configured.agent as agent:
            agent.does(lambda: stage.health() == 200, "the first commit")
            listing = stage.nft("-s", "list", "ruleset")
            with closing(stage.connect("a2", WEB)) as held, stage.commits() as commits:
                pod = ask(held)
                configured.write(metricsBindAddress="0.0.0.0:10249")
                agent.does(in_force(stage, "metricsBindAddress", "0.0.0.0:10249"), "the change")
                agent.does(lambda: stage.health() == 200, "health with it")
                assert commits.count() == 0
                assert stage.nft("-s", "list", "ruleset") == listing
                configured.write(nftables={"masqueradeAll": True})
                agent.does(lambda: masquerades(stage), "rules that masquerade everything")
                assert ask(held) == pod
            assert stage.probe(f"{WEB}:80", who="a2").reached.keys() == {"a1", "b1"}
            assert agent.said().count("applying the changed configuration file") == 2
            agent.signal(signal.SIGTERM)
            assert agent.ends() == 0


def in_force(stage: Stage, field: str, value: object) -> Callable[[], bool]:
    def check() -> bool:
        try:
            return bool(configz(stage)[field] == value)
        except OSError:
            return False

    return check


def masquerades(stage: Stage) -> bool:
    return bool(stage.probe(f"{WEB}:80", who="a2", tries=4).sources == {"10.244.1.1"})


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("mode: [", "not YAML"),
        ('{"mode": "nftables"}', "apiVersion"),
        ("{conntrack}", "conntrack.maxPerCore: expected int | null, got str"),
        ("{kubeconfig}", "--kubeconfig /nowhere: cannot be read"),
    ],
)
def test_a_wrong_file_changes_nothing_and_is_told_once(
    stage: Stage, tmp_path: Path, broken: str, says: str
) -> None:
    with stage.server() as server:
        configured = Configured(stage, tmp_path, server.url)
        with configured.agent as agent:
            agent.does(lambda: stage.health() == 200, "the first commit")
            write = {
                "{conntrack}": partial(configured.write, conntrack={"maxPerCore": "x"}),
                "{kubeconfig}": partial(
                    configured.write, clientConnection={"kubeconfig": "/nowhere"}
                ),
            }.get(broken, partial(configured.write_text, broken))
            write()
            agent.does(lambda: "the configuration in force stays" in agent.said(), "a warning")
            load_web(server)
            stage.until_served(agent, server, "the Service in the kernel")
            (line,) = [
                line for line in agent.said().splitlines() if " WARNING " in line and says in line
            ]
            assert "the configuration in force stays" in line
            assert stage.health() == 200


def test_mistakes_in_the_file_show_until_they_are_corrected(stage: Stage, tmp_path: Path) -> None:
    metric = 'pyproxy_configuration_problems{problem="configuration_file"}'
    mistakes = ("line 4: mode replaces its value in line 3", "unknown field clusterCidr is ignored")
    with stage.server() as server:
        load_web(server)
        configured = Configured(stage, tmp_path, server.url)
        good = yaml.safe_dump(json.loads(configured.path.read_text()), sort_keys=False)
        doubled = good.replace("mode:", "mode: iptables\nmode:")
        configured.write_text(f"{doubled}clusterCidr: 10.0.0.0/8\n")
        with configured.agent as agent:
            agent.does(lambda: stage.metrics().get(metric) == 1, "the metric")
            agent.does(lambda: stage.health() == 200, "the first commit")
            for words in (("status",), ("explain", "shop/web")):
                out = stage.run(*words, f"--inspect-socket={tmp_path}/na.sock").stdout
                assert all(mistake in out for mistake in mistakes), out
            assert all(agent.said().count(mistake) == 1 for mistake in mistakes)
            configured.write_text(good)
            agent.does(lambda: stage.metrics().get(metric) == 0, "the corrected file")
            configured.write_text("mode: [")
            agent.does(lambda: stage.metrics().get(metric) == 1, "the invalid file")
            out = stage.run("status", f"--inspect-socket={tmp_path}/na.sock").stdout
            assert "the configuration in force stays" in out
            assert "applying the changed configuration file" not in agent.said()


def test_init_only_makes_the_kernels_settings_and_ends(stage: Stage) -> None:
    done = stage.run(
        *("run", "--init-only", "--conntrack-max-per-core=0", "--oom-score-adj=500"),
        *("--conntrack-tcp-timeout-established=2h", "--nodeport-addresses=localhost"),
    )
    assert done.returncode == 0, done.stderr
    assert "nf_conntrack_tcp_timeout_established to 7200" in done.stderr
    assert "/proc/self/oom_score_adj to 500" in done.stderr
    sysctls = (
        "net.netfilter.nf_conntrack_tcp_timeout_established",
        "net.ipv4.conf.all.route_localnet",
    )
    assert stage.here.run(["sysctl", "-n", *sysctls]).stdout.split() == ["7200", "1"]
    assert stage.tables() == ["table inet pyproxy-node"]


def test_write_config_to_writes_what_is_in_force_and_ends(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "written.yaml"
    done = stage.run("run", "--masquerade-all", "--v=2", f"--write-config-to={path}")
    assert (done.returncode, done.stdout) == (0, "")
    written = yaml.safe_load(path.read_text())
    assert written["nftables"]["masqueradeAll"] is True
    assert written["logging"]["verbosity"] == 2
    assert stage.tables() == []
