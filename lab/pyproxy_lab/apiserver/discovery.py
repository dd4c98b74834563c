"""Discovery documents: versions, groups and resources."""

from __future__ import annotations

import platform

from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.resources import RESOURCES, Resource

_VERBS = [
    "create", "delete", "deletecollection", "get", "list", "patch", "update", "watch",
]  # fmt: skip
_SUBRESOURCE_VERBS = {
    "status": ["get", "patch", "update"],
    "finalize": ["update"],
    "exec": ["create", "get"],
}
_SUBRESOURCE_KINDS = {"exec": "PodExecOptions"}


def version() -> Object:
    """Return /version: the Kubernetes version whose behaviour is followed."""
    return {
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": "v1.36.2",
        "gitCommit": "lab",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": platform.python_implementation().lower(),
        "platform": f"{platform.system().lower()}/{platform.machine()}",
    }


def core_versions(address: str) -> Object:
    """Return /api."""
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def groups() -> Object:
    """Return /apis."""
    names = sorted({(r.group, r.version) for r in RESOURCES if r.group})
    return {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [_group(name, version) for name, version in names],
    }


def group(name: str) -> Object | None:
    """Return /apis/NAME, or None if nothing of that group is served."""
    for resource in RESOURCES:
        if name and resource.group == name:
            return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, resource.version)}
    return None


def resources(name: str, api_version: str) -> Object | None:
    """Return the resources of a group and version, or None if it is not served."""
    found = [r for r in RESOURCES if (r.group, r.version) == (name, api_version)]
    if not found:
        return None
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": found[0].api_version,
        "resources": [entry for resource in found for entry in _entries(resource)],
    }


def _group(name: str, api_version: str) -> Object:
    this = {"groupVersion": f"{name}/{api_version}", "version": api_version}
    return {"name": name, "versions": [this], "preferredVersion": this}


def _entries(resource: Resource) -> list[Object]:
    entry: Object = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": _VERBS,
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    below = [
        {
            "name": f"{resource.plural}/{name}",
            "singularName": "",
            "namespaced": resource.namespaced,
            "kind": _SUBRESOURCE_KINDS.get(name, resource.kind),
            "verbs": _SUBRESOURCE_VERBS[name],
        }
        for name in resource.subresources
    ]
    return [entry, *below]
