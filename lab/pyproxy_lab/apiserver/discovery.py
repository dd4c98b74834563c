"""Discovery documents: versions, groups and resources."""

from __future__ import annotations

import platform

from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.refused import REFUSED, entry
from pyproxy_lab.apiserver.resources import RESOURCES, Resource

_VERBS = [
    "create", "delete", "deletecollection", "get", "list", "patch", "update", "watch",
]  # fmt: skip
_SUBRESOURCE_VERBS = {
    "status": ["get", "patch", "update"],
    "finalize": ["update"],
    "scale": ["get", "patch", "update"],
    "log": ["get"],
    "attach": ["create", "get"],
    "exec": ["create", "get"],
    "portforward": ["create", "get"],
}
_SUBRESOURCE_KINDS = {
    "attach": "PodAttachOptions",
    "exec": "PodExecOptions",
    "portforward": "PodPortForwardOptions",
    "scale": "Scale",
}
_SUBRESOURCE_GROUPS = {"scale": {"group": "autoscaling", "version": "v1"}}


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
    names = sorted({(r.group, r.version) for r in (*RESOURCES, *REFUSED) if r.group})
    return {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [_group(name, version) for name, version in names],
    }


def group(name: str) -> Object | None:
    """Return /apis/NAME, or None if nothing of that group is served."""
    for resource in (*RESOURCES, *REFUSED):
        if name and resource.group == name:
            return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, resource.version)}
    return None


def resources(name: str, api_version: str) -> Object | None:
    """Return the resources of a group and version, or None if it is not served."""
    found = [r for r in RESOURCES if (r.group, r.version) == (name, api_version)]
    refused = [r for r in REFUSED if (r.group, r.version) == (name, api_version)]
    if not found and not refused:
        return None
    shown = [each for resource in found for each in _entries(resource)]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{name}/{api_version}" if name else api_version,
        "resources": shown + [entry(kind) for kind in refused],
    }


def _group(name: str, api_version: str) -> Object:
    this = {"groupVersion": f"{name}/{api_version}", "version": api_version}
    return {"name": name, "versions": [this], "preferredVersion": this}


def _entries(resource: Resource) -> list[Object]:
    own: Object = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": _VERBS,
    }
    if resource.short_names:
        own["shortNames"] = list(resource.short_names)
    if resource.categories:
        own["categories"] = list(resource.categories)
    below = [
        {
            "name": f"{resource.plural}/{name}",
            "singularName": "",
            "namespaced": resource.namespaced,
            **_SUBRESOURCE_GROUPS.get(name, {}),
            "kind": _SUBRESOURCE_KINDS.get(name, resource.kind),
            "verbs": _SUBRESOURCE_VERBS[name],
        }
        for name in resource.subresources
    ]
    return [own, *below]
