"""kubectl itself against the server, its checks left on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from pyproxy_lab.apiserver.server import ApiServer

from tests.lab.api import PODS, Api

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")

MANIFEST = """
apiVersion: v1
kind: Pod
metadata: {name: hello-1, labels: {app: hello}}
spec:
  containers: [{name: c, image: hello:1, ports: [{name: http, containerPort: 5678}]}]
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec:
  type: NodePort
  selector: {app: hello}
  ports:
  - {name: http, port: 80, targetPort: http, nodePort: 30080}
  - {name: admin, port: 81}
"""

Kubectl = Callable[..., str]


@pytest.fixture
def kubectl(server: ApiServer, tmp_path: Path) -> Kubectl:
    def run(*arguments: str, status: int = 0) -> str:
        # A home of its own keeps kubectl's cache of another server's kinds away.
        environment = {**os.environ, "HOME": str(tmp_path), "KUBECONFIG": str(tmp_path / "none")}
        done = subprocess.run(
            ["kubectl", "--server", server.url, *arguments],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    return run


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "manifest.yaml"
    path.write_text(MANIFEST)
    return path


def columns(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines()]


def test_apply_get_and_delete(kubectl: Kubectl, manifest: Path, api: Api) -> None:
    apply = ("apply", "-f", str(manifest))
    assert kubectl(*apply).splitlines() == ["pod/hello-1 created", "service/hello created"]
    assert kubectl(*apply).splitlines() == ["pod/hello-1 unchanged", "service/hello unchanged"]

    before = json.loads(kubectl("get", "service", "hello", "-o", "json"))["spec"]
    manifest.write_text(MANIFEST.replace("port: 81", "port: 82"))
    assert kubectl(*apply).splitlines()[1] == "service/hello configured"
    after = json.loads(kubectl("get", "svc", "hello", "-o", "json"))["spec"]
    assert [port["port"] for port in after["ports"]] == [80, 82]
    assert after["clusterIP"] == before["clusterIP"]
    assert after["ports"][0] == before["ports"][0]

    head, row, _ = columns(kubectl("get", "services"))
    assert head == ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]
    ports = f"80:30080/TCP,82:{after['ports'][1]['nodePort']}/TCP"
    assert row[:5] == ["hello", "NodePort", before["clusterIP"], "<none>", ports]

    assert kubectl("delete", "-f", str(manifest)).count("deleted") == 2
    assert api("GET", f"{PODS}/hello-1").status == 404
    assert "NotFound" in kubectl("get", "service", "hello", status=1)


def test_a_misspelt_field_is_refused(kubectl: Kubectl, manifest: Path) -> None:
    manifest.write_text(MANIFEST.replace("targetPort", "targetport"))
    error = kubectl("apply", "-f", str(manifest), status=1)
    assert 'unknown field "spec.ports[0].targetport"' in error


def test_an_invalid_object_is_refused_in_the_servers_words(
    kubectl: Kubectl, manifest: Path
) -> None:
    manifest.write_text(MANIFEST.replace("30080", "80"))
    error = kubectl("apply", "-f", str(manifest), status=1)
    assert "The range of valid ports is 30000-32767" in error


def test_what_else_people_type(kubectl: Kubectl, manifest: Path) -> None:
    kubectl("apply", "-f", str(manifest))
    kubectl("label", "pod", "hello-1", "tier=front")
    kubectl("annotate", "service", "hello", "note=x")
    ready = {
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": "10.244.1.5"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }
    }
    patch = ("patch", "pod", "hello-1", "--subresource=status", "--type=merge", "-p")
    kubectl(*patch, json.dumps(ready))
    rows = columns(kubectl("get", "pods", "-l", "tier=front", "-o", "wide", "--no-headers"))
    assert [*rows[0][:4], rows[0][5]] == ["hello-1", "1/1", "Running", "0", "10.244.1.5"]
    kubectl("wait", "--for=condition=Ready", "pod/hello-1", "--timeout=60s")
    kubectl("patch", "svc", "hello", "-p", '{"spec":{"ports":[{"port":80,"targetPort":9}]}}')
    kubectl("create", "namespace", "shop")
    kubectl("create", "-n", "shop", "service", "nodeport", "x", "--tcp=80:http", "--tcp=81:82")
    made = json.loads(kubectl("get", "-n", "shop", "service", "x", "-o", "json"))
    assert made["metadata"]["labels"] == made["spec"]["selector"] == {"app": "x"}
    assert [port["targetPort"] for port in made["spec"]["ports"]] == ["http", 82]
    described = kubectl("describe", "service", "hello")
    assert "NodePort:                 http  30080/TCP" in described
    assert "9/TCP" in described
    assert "hello-1" in kubectl("get", "all")
    assert "endpointslices" in kubectl("api-resources", "--namespaced=true")
    assert "Server Version: v1.36" in kubectl("version")
    kubectl("delete", "pod", "hello-1", "--now")
    kubectl("delete", "namespace", "kube-node-lease")
    assert "kube-node-lease" not in kubectl("get", "namespaces")
    assert "may not be deleted" in kubectl("delete", "namespace", "default", status=1)
    assert "<string>" in kubectl("explain", "service.spec.clusterIP")
