"""The chart, rendered with its defaults and with everything on."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from . import schemas
from .gotemplate import TemplateError, render
from .manifests import BASE, CHART, SERVERS, agent, chart, notes, objects, the, tool

EVERYTHING: dict[str, Any] = {
    "apiServers": SERVERS,
    "takeover": False,
    "image": {"repository": "registry.example/pyproxy", "tag": "x"},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {}},
    "dashboard": {"enabled": True},
}
VALUES = {"defaults": {"apiServers": SERVERS}, "everything": EVERYTHING}


def rest_of_pod(among: list[dict[str, Any]]) -> dict[str, Any]:
    spec = the("DaemonSet", among)["spec"]["template"]["spec"]
    return {key: value for key, value in spec.items() if key != "containers"}


@pytest.mark.parametrize("name", VALUES)
def test_the_chart_is_what_its_kinds_have(name: str) -> None:
    rendered = chart(**VALUES[name])
    for each in rendered:
        schemas.check(each)
    kinds = [each["kind"] for each in rendered]
    assert ("ServiceMonitor" in kinds) is (name == "everything")
    assert "rollout status daemonset/pyproxy" in notes()


def test_chart_and_base_have_the_same_pods() -> None:
    """But for where the API server's address stands, and the way a boolean is written."""
    ours, theirs = chart(apiServers=SERVERS), objects((BASE / "daemonset.yaml").read_text())
    left, right = agent(ours), agent(theirs)
    flags = {"--master=" + ",".join(SERVERS): "--master=$(API_SERVERS)"}
    flags["--takeover=true"] = "--takeover"
    assert [flags.get(each, each) for each in left["args"]] == right["args"]
    assert left["env"] == [each for each in right["env"] if each["name"] != "API_SERVERS"]
    same = left.keys() - {"args", "env"}
    assert {key: left[key] for key in same} == {key: right[key] for key in same}
    assert rest_of_pod(ours) == rest_of_pod(theirs)
    assert (
        the("DaemonSet", ours)["spec"]["updateStrategy"]
        == the("DaemonSet", theirs)["spec"]["updateStrategy"]
    )
    rules = objects((BASE / "rbac.yaml").read_text())
    assert the("ClusterRole", ours)["rules"] == the("ClusterRole", rules)["rules"]


def test_the_chart_wants_to_know_where_the_api_server_is() -> None:
    with pytest.raises(TemplateError, match="apiServers: say where"):
        chart()


def test_helm_renders_the_same() -> None:
    """Where helm is at hand, it says whether our reading of templates is right."""
    command = [tool("helm"), "template", "pyproxy", str(CHART), "--namespace", "kube-system"]
    for given in VALUES.values():
        sets = [f"--set-json={key}={json.dumps(value)}" for key, value in given.items()]
        done = subprocess.run([*command, *sets], capture_output=True, text=True, check=True)
        kinds = {(o["kind"], o["metadata"]["name"]): o for o in objects(done.stdout)}
        assert kinds == {(o["kind"], o["metadata"]["name"]): o for o in chart(**given)}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a {{- if .Yes }} b {{- end }} c", "a b c"),
        ("{{ if .No }}{{ with .Yes }}{{ nonsense }}{{ end }}{{ end -}} \n x", "x"),
        ('{{ .No | default "d" }}{{ .Yes }}', "dtrue"),
        ("a:\n  {{- toYaml .Map | nindent 2 }}", "a:\n  b:\n  - 1"),
        ("{{ with .Map }}{{ .b }}{{ end }}", "[1]"),
    ],
)
def test_templates(template: str, text: str) -> None:
    assert render(template, {"Yes": True, "No": "", "Map": {"b": [1]}}) == text


@pytest.mark.parametrize(
    "template",
    ["{{ if .A }}", "{{ end }}", "{{ .B }}", "{{ range .A }}{{ end }}", "{{ .A | upper }}"],
)
def test_what_templates_may_not_have(template: str) -> None:
    with pytest.raises(TemplateError):
        render(template, {"A": "x"})
