"""Check manifests for unknown fields, wrong types and missing fields.

Kubernetes' own kinds are checked against its Python client's models, which are generated from the
API's OpenAPI description. Custom resources are declared here, with the fields in use.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from kubernetes.client import ApiClient
from pyproxy_lab.apiserver.schema import checked

_MODELS = {
    ("v1", "ConfigMap"): "V1ConfigMap",
    ("v1", "Namespace"): "V1Namespace",
    ("v1", "Service"): "V1Service",
    ("v1", "ServiceAccount"): "V1ServiceAccount",
    ("apps/v1", "DaemonSet"): "V1DaemonSet",
    ("apps/v1", "Deployment"): "V1Deployment",
    ("batch/v1", "Job"): "V1Job",
    ("rbac.authorization.k8s.io/v1", "ClusterRole"): "V1ClusterRole",
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"): "V1ClusterRoleBinding",
    ("rbac.authorization.k8s.io/v1", "Role"): "V1Role",
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): "V1RoleBinding",
}


class _Strict(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """A custom resource, or a part of one."""


class _Metadata(_Strict):
    name: str
    namespace: str = ""
    labels: dict[str, str] = {}


class _Selector(_Strict):
    match_labels: dict[str, str]


class _Relabeling(_Strict):
    source_labels: list[str] = []
    target_label: str = ""
    regex: str = ""
    action: str = ""


class _Endpoint(_Strict):
    port: str
    interval: str
    scrape_timeout: str = ""
    relabelings: list[_Relabeling] = []
    metric_relabelings: list[_Relabeling] = []


class _ServiceMonitorSpec(_Strict):
    job_label: str
    selector: _Selector
    endpoints: list[_Endpoint]


class ServiceMonitor(_Strict):
    """monitoring.coreos.com/v1, ServiceMonitor."""

    api_version: str
    kind: str
    metadata: _Metadata
    spec: _ServiceMonitorSpec


class _PodMonitorSpec(_Strict):
    job_label: str
    selector: _Selector
    pod_metrics_endpoints: list[_Endpoint]


class PodMonitor(_Strict):
    """monitoring.coreos.com/v1, PodMonitor."""

    api_version: str
    kind: str
    metadata: _Metadata
    spec: _PodMonitorSpec


class Rule(_Strict, kw_only=True):
    """An alert; the names are those of Prometheus' rule files."""

    alert: str
    expr: str
    for_: str = msgspec.field(name="for", default="0s")
    labels: dict[str, str]
    annotations: dict[str, str]


class Group(_Strict):
    """A group of rules."""

    name: str
    rules: list[Rule]


class RuleGroups(_Strict):
    """A file of rules, and the spec of a PrometheusRule."""

    groups: list[Group]


class PrometheusRule(_Strict):
    """monitoring.coreos.com/v1, PrometheusRule."""

    api_version: str
    kind: str
    metadata: _Metadata
    spec: RuleGroups


_CUSTOM: dict[tuple[str, str], type[_Strict]] = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): ServiceMonitor,
    ("monitoring.coreos.com/v1", "PodMonitor"): PodMonitor,
    ("monitoring.coreos.com/v1", "PrometheusRule"): PrometheusRule,
}


def check(obj: dict[str, Any]) -> None:
    """Raise AssertionError, ApiError or ValueError at the first mistake in an object."""
    key = obj["apiVersion"], obj["kind"]
    if key in _CUSTOM:
        msgspec.convert(obj, _CUSTOM[key])
        return
    unknown: list[str] = []
    checked(obj, _MODELS[key], obj["kind"], unknown)
    assert not unknown, f"{obj['kind']} {obj['metadata']['name']} has no {', '.join(unknown)}"
    # The models raise ValueError for a missing required field.
    ApiClient().deserialize(json.dumps(obj), _MODELS[key], "application/json")
