"""The server around the objects: discovery, https, and the place for faults."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import urllib.request
from pathlib import Path

import pytest
from aiohttp import web
from pyproxy_lab.apiserver.server import ApiServer, Handler
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.endpointslice_controller import Controller

from tests.lab.api import Api, eventually


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz"])
def test_health(api: Api, path: str) -> None:
    assert (api("GET", path).status, api("GET", path).raw) == (200, b"ok")


def test_discovery_leads_to_every_resource(api: Api) -> None:
    roots = [f"/api/{version}" for version in api.ok("GET", "/api")["versions"]]
    for group in api.ok("GET", "/apis")["groups"]:
        assert api.ok("GET", f"/apis/{group['name']}")["kind"] == "APIGroup"
        roots += [f"/apis/{version['groupVersion']}" for version in group["versions"]]
    served = {}
    for root in roots:
        for resource in api.ok("GET", root)["resources"]:
            if "list" in resource["verbs"] and "/" not in resource["name"]:
                listed = api.ok("GET", f"{root}/{resource['name']}")
                served[root, resource["name"]] = listed["kind"]
    assert served == {
        ("/api/v1", "namespaces"): "NamespaceList",
        ("/api/v1", "nodes"): "NodeList",
        ("/api/v1", "services"): "ServiceList",
        ("/api/v1", "pods"): "PodList",
        ("/api/v1", "events"): "EventList",
        ("/api/v1", "configmaps"): "ConfigMapList",
        ("/api/v1", "secrets"): "SecretList",
        ("/api/v1", "serviceaccounts"): "ServiceAccountList",
        ("/api/v1", "endpoints"): "EndpointsList",
        ("/apis/apps/v1", "deployments"): "DeploymentList",
        ("/apis/apps/v1", "replicasets"): "ReplicaSetList",
        ("/apis/apps/v1", "statefulsets"): "StatefulSetList",
        ("/apis/apps/v1", "daemonsets"): "DaemonSetList",
        ("/apis/apps/v1", "controllerrevisions"): "ControllerRevisionList",
        ("/apis/discovery.k8s.io/v1", "endpointslices"): "EndpointSliceList",
        ("/apis/events.k8s.io/v1", "events"): "EventList",
    }
    assert api("GET", "/apis/example.org").status == 404


def test_openapi_documents_refer_to_schemas_that_they_have(api: Api) -> None:
    for entry in api.ok("GET", "/openapi/v3")["paths"].values():
        response = api("GET", entry["serverRelativeURL"])
        schemas = response.body["components"]["schemas"]
        referred = {part.split(b'"')[0].decode() for part in response.raw.split(b"schemas/")[1:]}
        assert referred <= set(schemas)


def test_a_middleware_can_answer_in_the_servers_place() -> None:
    faults = [429, 500]

    @web.middleware
    async def fail_first(request: web.Request, handler: Handler) -> web.StreamResponse:
        if faults:
            return web.Response(status=faults.pop(0))
        return await handler(request)

    with ApiServer.running(Settings(), middlewares=[fail_first]) as server:
        api = Api(server.url)
        assert [api("GET", "/api/v1/nodes").status for _ in range(3)] == [429, 500, 200]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, for a certificate")
def test_https(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=lab", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    settings = Settings(tls_cert=cert, tls_key=key)
    with ApiServer.running(settings) as server, Controller.running(server.url):
        assert server.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(cert))
        with urllib.request.urlopen(f"{server.url}/readyz", context=trusting) as response:
            assert response.read() == b"ok"
        # The controller, which does not check the certificate, gets through as well.
        eventually(lambda: server.watch_count == 4)
