"""The chart, rendered by helm with its defaults and with everything on."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
import yaml

from tools import chart_schema

from . import schemas
from .manifests import BASE, CHART, SERVERS, agent, chart, helm, objects, the

EVERYTHING: dict[str, Any] = {
    "apiServers": SERVERS,
    "takeover": False,
    "image": {"repository": "registry.example/pyproxy", "tag": "x"},
    "serviceMonitor": {
        "enabled": True,
        "scrapeTimeout": "5s",
        "labels": {"release": "prometheus"},
        "relabelings": [{"targetLabel": "cluster", "action": "replace"}],
        "metricRelabelings": [
            {"sourceLabels": ["__name__"], "regex": "python_.*", "action": "drop"}
        ],
    },
    "prometheusRule": {"enabled": True, "labels": {}},
    "dashboard": {"enabled": True},
    "imagePullSecrets": [{"name": "registry"}],
    "podLabels": {"k8s-app": "kube-proxy"},
    "podAnnotations": {"team": "network"},
    "extraArgs": ["--v=2"],
    "extraEnv": [{"name": "NO_PROXY", "value": "10.0.0.0/8"}],
    "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca", "readOnly": True}],
    "updateStrategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
    "affinity": {"nodeAffinity": {}},
    "serviceAccount": {"name": "other", "annotations": {"a": "b"}},
    "config": {"metricsBindAddress": "0.0.0.0:11249", "healthzBindAddress": "[::]:11256"},
}
ON = {"enabled": True}
SCRAPED: dict[str, Any] = {"metricsBindAddress": "0.0.0.0:10249"}
VALUES: dict[str, dict[str, Any]] = {
    "defaults": {"apiServers": SERVERS},
    "everything": EVERYTHING,
    "a PodMonitor": {
        "apiServers": SERVERS,
        "config": SCRAPED,
        "podMonitor": {"enabled": True, "interval": "1m", "labels": {"release": "prometheus"}},
    },
    "OnDelete": {"apiServers": SERVERS, "updateStrategy": {"type": "OnDelete"}},
    "no ports": {
        "apiServers": SERVERS,
        "config": {"healthzBindAddress": "0", "metricsBindAddress": "0"},
    },
}


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
    assert ("PodMonitor" in kinds) is (name == "a PodMonitor")


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


@pytest.mark.parametrize(
    ("config", "ports", "host"),
    [
        ({}, [10256, 10249], None),
        ({"healthzBindAddress": "[::]:11256", "metricsBindAddress": "::1"}, [11256, 10249], None),
        ({"healthzBindAddress": "fd00::17"}, [10256, 10249], None),
        ({"healthzBindAddress": "127.0.0.1:7"}, [7, 10249], "127.0.0.1"),
        ({"healthzBindAddress": "[::1]:7"}, [7, 10249], "::1"),
        ({"healthzBindAddress": "10.0.0.1"}, [10256, 10249], None),
        ({"healthzBindAddress": "0"}, [10249], None),
        ({"metricsBindAddress": "0"}, [10256], None),
        ({"healthzBindAddress": "0", "metricsBindAddress": "0"}, [], None),
        ({"healthzBindAddress": None, "bindAddress": "::"}, [10256, 10249], None),
    ],
)
def test_ports_and_probes_follow_the_configured_addresses(
    config: dict[str, Any], ports: list[int], host: str | None
) -> None:
    container = agent(chart(apiServers=SERVERS, config=config))
    assert [each["containerPort"] for each in container.get("ports", [])] == ports
    probes = [each["httpGet"] for key, each in container.items() if key.endswith("Probe")]
    assert len(probes) == (0 if config.get("healthzBindAddress") == "0" else 3)
    for probe in probes:
        assert (probe["port"], probe.get("host")) == ("healthz", host)


def test_a_monitor_has_the_configured_port_and_relabelings() -> None:
    rendered = chart(**EVERYTHING)
    (port,) = the("Service", rendered, "pyproxy-metrics")["spec"]["ports"]
    assert port["port"] == 11249
    wanted = EVERYTHING["serviceMonitor"]
    node = {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "instance"}
    (endpoint,) = the("ServiceMonitor", rendered)["spec"]["endpoints"]
    assert endpoint == {
        "port": "metrics",
        "interval": "30s",
        "scrapeTimeout": "5s",
        "relabelings": [node, *wanted["relabelings"]],
        "metricRelabelings": wanted["metricRelabelings"],
    }
    rendered = chart(**VALUES["a PodMonitor"])
    (endpoint,) = the("PodMonitor", rendered)["spec"]["podMetricsEndpoints"]
    assert endpoint == {"port": "metrics", "interval": "1m", "relabelings": [node]}


def test_the_account_has_the_given_name_everywhere() -> None:
    rendered = chart(**EVERYTHING)
    account = the("DaemonSet", rendered)["spec"]["template"]["spec"]["serviceAccountName"]
    assert the("ServiceAccount", rendered, "other")["metadata"]["name"] == account
    (subject,) = the("ClusterRoleBinding", rendered)["subjects"]
    assert subject["name"] == account


def test_extra_volumes_and_the_update_strategy_are_the_given_ones() -> None:
    rendered = chart(**EVERYTHING)
    spec = the("DaemonSet", rendered)["spec"]
    assert spec["updateStrategy"] == {"type": "RollingUpdate", **EVERYTHING["updateStrategy"]}
    assert spec["template"]["spec"]["volumes"][-1:] == EVERYTHING["extraVolumes"]
    assert agent(rendered)["volumeMounts"][-1:] == EVERYTHING["extraVolumeMounts"]
    ondelete = the("DaemonSet", chart(**VALUES["OnDelete"]))["spec"]["updateStrategy"]
    assert ondelete == {"type": "OnDelete"}


def test_the_schema_names_every_value_and_every_field_of_the_agents_file() -> None:
    text = (CHART / "values.schema.json").read_text()
    assert text == chart_schema.generate(text), "run: make generate"
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert unknown(values, json.loads(text)) == []


def unknown(values: dict[str, Any], schema: dict[str, Any], at: str = "") -> list[str]:
    """Return the values without a schema, and the sections that allow any value."""
    found = [] if schema.get("additionalProperties") is False else [f"{at}: additionalProperties"]
    for name, value in values.items():
        if name not in schema["properties"]:
            found.append(f"{at}.{name}")
        elif "properties" in (inner := schema["properties"][name]):
            found += unknown(value, inner, f"{at}.{name}")
    return found


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
        ({"podMonitor": {"interval": "1 minute"}}, "podMonitor/interval"),
        ({"serviceMonitor": {"enabled": True}}, "config.metricsBindAddress 127.0.0.1"),
        ({"podMonitor": {"enabled": True}}, "config.metricsBindAddress 127.0.0.1"),
        *(
            ({"podMonitor": {"enabled": True}, "config": {"metricsBindAddress": address}}, reason)
            for address, reason in (
                ("[::1]:10249", "set it to [::]:10249"),
                ("::1", "set it to [::]:10249"),
                ("0:0:0:0:0:0:0:1", "set it to [::]:10249"),
                ("127.1.2.3", "set it to 0.0.0.0:10249"),
                ("::ffff:127.0.0.1", "cannot reach"),
                ("0", "turns /metrics off"),
            )
        ),
        (
            {"config": SCRAPED, "serviceMonitor": ON, "podMonitor": ON},
            "enable one of them",
        ),
        ({"extraArgs": ["--metrics-bind-address=0.0.0.0:1"]}, "set config.metricsBindAddress"),
        ({"extraArgs": ["--v=2", "-healthz-port", "1"]}, "set config.healthzBindAddress"),
        ({"extraArgs": ["--config=/mine"]}, "extraArgs: --config is the chart's own"),
        ({"config": {"metricBindAddress": "0.0.0.0:10249"}}, "metricBindAddress"),
        ({"config": {"conntrack": {"mins": 1}}}, "mins"),
        ({"config": {"kind": "x"}}, "kind"),
        ({"updateStrategy": {"type": "Recreate"}}, "updateStrategy/type"),
        ({"updateStrategy": {"rollingUpdate": {"maxSurge": 1}}}, "the other to 0"),
        ({"updateStrategy": {"rollingUpdate": {"maxUnavailable": "0%"}}}, "the other to 0"),
        ({"maxUnavailable": 1}, "maxUnavailable"),
        ({"podLabels": {"a": 1}}, "podLabels/a"),
        ({"extraVolumes": {"name": "x"}}, "extraVolumes"),
    ],
)
def test_mistaken_values_are_refused(values: dict[str, Any], part: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        chart(**{"apiServers": SERVERS, **values})
    assert part in raised.value.stderr
