"""The kustomizations render to objects that an API server would take, and do what we want."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyproxy_lab.apiserver.status import ApiError

import pyproxy
from pyproxy.agent.rights import needed
from pyproxy.config import file
from pyproxy.config.settings import ListenAddress, Serving, Settings
from pyproxy.model.address import parse_address

from . import schemas
from .manifests import (
    BASE,
    CHART,
    DEPLOY,
    ROOT,
    SERVERS,
    agent,
    chart,
    kustomized,
    objects,
    the,
)

KUSTOMIZATIONS = sorted(
    path.parent.relative_to(DEPLOY) for path in DEPLOY.rglob("kustomization.yaml")
)


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=str)
def test_kustomizations_are_what_their_kinds_have(folder: Path) -> None:
    rendered = kustomized(DEPLOY / folder)
    for each in rendered:
        schemas.check(each)
        if not each["kind"].startswith("ClusterRole"):
            assert each["metadata"]["namespace"] == "kube-system"
    assert rendered


def test_files_that_nothing_renders_are_checked_as_they_stand() -> None:
    """Without kubectl too: everything that has a kind of the API's."""
    checked = 0
    for path in sorted(DEPLOY.rglob("*.yaml")):
        if CHART in path.parents:
            continue
        for each in objects(path.read_text()):
            if {"apiVersion", "kind", "metadata"} <= each.keys():
                schemas.check(each)
                checked += 1
    assert checked >= 5


def spoil(where: str, value: Any) -> dict[str, Any]:
    """Put a value somewhere in the DaemonSet, or take out what is there."""
    found = objects((BASE / "daemonset.yaml").read_text())[0]
    at: Any = found
    *path, last = (int(each) if each.isdigit() else each for each in where.split("/"))
    for each in path:
        at = at[each]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return found


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("spec/template/spec/hostNetwork", "true"),
        ("spec/template/spec/hostnetwork", True),
        ("spec/template/spec/containers/0/securityContext/capabilities/drops", ["ALL"]),
        ("spec/template/spec/containers/0/name", None),
        ("spec/template/spec/containers/0/livenessProbe/httpGet/port", None),
        ("spec/selector", None),
        ("spec/template/spec/tolerations", "Exists"),
    ],
)
def test_the_check_finds_mistakes(where: str, value: Any) -> None:
    with pytest.raises((AssertionError, ApiError, ValueError)):
        schemas.check(spoil(where, value))


def test_the_agent_has_the_capabilities_that_it_needs_and_no_others() -> None:
    everywhere = parse_address("0.0.0.0")
    serving = Serving(
        ListenAddress(everywhere, 10256), ListenAddress(everywhere, 10249), hard_fail=False
    )
    settings = Settings("n", serving=serving, takeover=True)
    wanted = {each.name for each in needed(settings)}
    context = agent(objects((BASE / "daemonset.yaml").read_text()))["securityContext"]
    assert set(context["capabilities"]["add"]) == wanted
    assert context["capabilities"]["drop"] == ["ALL"]
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]


def test_containers_with_capabilities_leave_the_confinement_of_selinux() -> None:
    """A privileged container has this type by itself."""
    found = 0
    for path in ("base", "cleanup"):
        spec = objects((DEPLOY / path / "daemonset.yaml").read_text())[0]["spec"]["template"][
            "spec"
        ]
        for container in (*spec.get("initContainers", []), *spec["containers"]):
            context = container["securityContext"]
            if "add" in context.get("capabilities", {}):
                assert context["seLinuxOptions"] == {"type": "spc_t", "level": "s0"}
                found += 1
    assert found == 2


def check_configuration(text: str) -> None:
    configuration = file.parse(text.encode()).configuration
    assert configuration.mode == "nftables"
    assert configuration.healthz_bind_address.endswith(":10256")


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.conf")), ids=str)
def test_configuration_files_are_read_as_kube_proxy_configurations(path: Path) -> None:
    check_configuration(path.read_text())


def test_the_charts_configuration_is_read_as_a_kube_proxy_configuration() -> None:
    config = the("ConfigMap", chart(apiServers=SERVERS))
    check_configuration(config["data"]["config.conf"])


def test_the_swap_changes_an_image_and_nothing_else() -> None:
    patch = yaml.safe_load((DEPLOY / "kubeadm-swap.yaml").read_text())
    image = f"pyproxy:{pyproxy.__version__}"
    containers = [{"name": "kube-proxy", "image": image}]
    assert patch == {"spec": {"template": {"spec": {"containers": containers}}}}


def test_all_name_the_image_of_this_version() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert about["version"] == about["appVersion"] == pyproxy.__version__
    for path in DEPLOY.rglob("*.yaml"):
        for tag in re.findall(r"image: \"?pyproxy:([\w.]+)", path.read_text()):
            assert tag == pyproxy.__version__, path


def test_the_documented_patch_changes_the_ports_and_nothing_else(tmp_path: Path) -> None:
    """The probes and the Service of the metrics name the ports."""
    (patch,) = re.findall(
        r"```yaml\n(patches:.*?)```", (ROOT / "docs/tasks/monitoring.md").read_text(), re.S
    )
    base = os.path.relpath(DEPLOY / "overlays/monitoring", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(f"resources: [{base}]\n{patch}")
    patched, plain = kustomized(tmp_path), kustomized(DEPLOY / "overlays/monitoring")
    assert [each["containerPort"] for each in agent(patched)["ports"]] == [11256, 11249]
    container = the("DaemonSet", plain)["spec"]["template"]["spec"]["containers"][0]
    for port, changed in zip(container["ports"], agent(patched)["ports"], strict=True):
        port["containerPort"] = changed["containerPort"]
    assert patched == plain
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == "healthz"
    (port,) = the("Service", plain, "pyproxy-metrics")["spec"]["ports"]
    assert port["targetPort"] == "metrics"
