"""The chart, rendered by helm with its defaults and with everything on."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from . import schemas
from .manifests import BASE, SERVERS, agent, chart, helm, objects, the

EVERYTHING: dict[str, Any] = {
    "apiServers": SERVERS,
    "takeover": False,
    "image": {"repository": "registry.example/pyproxy", "tag": "x"},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {}},
    "dashboard": {"enabled": True},
    "imagePullSecrets": [{"name": "registry"}],
    "podLabels": {"k8s-app": "kube-proxy"},
    "podAnnotations": {"team": "network"},
    "extraArgs": ["--v=2"],
    "extraEnv": [{"name": "NO_PROXY", "value": "10.0.0.0/8"}],
    "affinity": {"nodeAffinity": {}},
    "serviceAccount": {"name": "other", "annotations": {"a": "b"}},
    "config": {"metricsBindAddress": "0.0.0.0:11249", "healthzBindAddress": "[::]:11256"},
}
VALUES = {"defaults": {"apiServers": SERVERS}, "everything": EVERYTHING}


def pod_without_containers(among: list[dict[str, Any]]) -> dict[str, Any]:
    spec = the("DaemonSet", among)["spec"]["template"]["spec"]
    return {key: value for key, value in spec.items() if key != "containers"}


@pytest.mark.parametrize("name", VALUES)
def test_every_rendered_object_fits_its_schema(name: str) -> None:
    rendered = chart(**VALUES[name])
    for each in rendered:
        schemas.check(each)
    kinds = [each["kind"] for each in rendered]
    assert ("ServiceMonitor" in kinds) is (name == "everything")


def test_the_notes_say_how_to_watch_the_rollout() -> None:
    notes = helm("install", "pyproxy", "--dry-run=client", apiServers=SERVERS)
    assert "rollout status daemonset/pyproxy" in notes


def test_chart_and_base_have_the_same_pods() -> None:
    """Except for the source of the API server's address and the spelling of booleans."""
    ours, theirs = chart(apiServers=SERVERS), objects((BASE / "daemonset.yaml").read_text())
    left, right = agent(ours), agent(theirs)
    flags = {"--master=" + ",".join(SERVERS): "--master=$(API_SERVERS)"}
    flags["--takeover=true"] = "--takeover"
    assert [flags.get(each, each) for each in left["args"]] == right["args"]
    assert left["env"] == [each for each in right["env"] if each["name"] != "API_SERVERS"]
    same = left.keys() - {"args", "env"}
    assert {key: left[key] for key in same} == {key: right[key] for key in same}
    assert pod_without_containers(ours) == pod_without_containers(theirs)
    assert (
        the("DaemonSet", ours)["spec"]["updateStrategy"]
        == the("DaemonSet", theirs)["spec"]["updateStrategy"]
    )
    rules = objects((BASE / "rbac.yaml").read_text())
    assert the("ClusterRole", ours)["rules"] == the("ClusterRole", rules)["rules"]


def test_a_chart_without_api_servers_is_refused() -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        chart()
    assert "apiServers: " in raised.value.stderr


def test_helm_lint_finds_nothing() -> None:
    found = helm("lint", "--strict", apiServers=SERVERS)
    assert "0 chart(s) failed" in found


def test_ports_follow_the_configured_addresses() -> None:
    rendered = chart(**EVERYTHING)
    assert [each["containerPort"] for each in agent(rendered)["ports"]] == [11256, 11249]
    (port,) = the("Service", rendered, "pyproxy-metrics")["spec"]["ports"]
    assert port["port"] == 11249
    account = the("DaemonSet", rendered)["spec"]["template"]["spec"]["serviceAccountName"]
    assert the("ServiceAccount", rendered, "other")["metadata"]["name"] == account
    (subject,) = the("ClusterRoleBinding", rendered)["subjects"]
    assert subject["name"] == account


def test_rights_made_by_others_are_left_to_them() -> None:
    rendered = chart(apiServers=SERVERS, serviceAccount={"create": False}, rbac={"create": False})
    assert [each["kind"] for each in rendered] == ["ConfigMap", "DaemonSet"]


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"nodeSelectors": {}}, "nodeSelectors"),
        ({"image": {"repo": "x"}}, "repo"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"takeover": "yes"}, "takeover"),
        ({"apiServers": "https://a.example:6443"}, "apiServers"),
        ({"serviceMonitor": {"intervall": "1m"}}, "intervall"),
        ({"serviceMonitor": {"enabled": True}}, "config.metricsBindAddress 127.0.0.1:10249"),
        (
            {
                "serviceMonitor": {"enabled": True},
                "config": {"metricsBindAddress": "[::1]:10249"},
            },
            "config.metricsBindAddress [::1]:10249",
        ),
    ],
)
def test_mistaken_values_are_refused(values: dict[str, Any], part: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        chart(**{"apiServers": SERVERS, **values})
    assert part in raised.value.stderr
