"""Kinds of Kubernetes that the lab does not run, each refused with one line that says so.

Discovery lists them, so that kubectl names the kind and sends the request, whose refusal it prints.
"""

from __future__ import annotations

import msgspec

from pyproxy_lab.apiserver import resources, status
from pyproxy_lab.apiserver.objects import Object


class RefusedKind(msgspec.Struct, frozen=True):
    """A kind, and why the lab refuses it."""

    group: str
    version: str
    kind: str
    plural: str
    why: str
    short_names: tuple[str, ...] = ()
    namespaced: bool = True


_NO_JOBS = "it runs no batch jobs: use kubectl run"
_NO_USAGE = "it measures no usage: use kubectl scale"
_FIXED_RIGHTS = "its tokens have fixed rights"
_NO_VOLUMES = "it has no volumes"
REFUSED = (
    RefusedKind("batch", "v1", "Job", "jobs", _NO_JOBS),
    RefusedKind(
        "batch", "v1", "CronJob", "cronjobs", _NO_JOBS, ("cj",)
    ),
    RefusedKind(
        "networking.k8s.io", "v1", "Ingress", "ingresses",
        "it has no ingress controller: expose the Service by NodePort or LoadBalancer", ("ing",),
    ),
    RefusedKind(
        "networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies",
        "it has no network plugin that enforces policies", ("netpol",),
    ),
    RefusedKind(
        "autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers",
        _NO_USAGE, ("hpa",),
    ),
    RefusedKind(
        "autoscaling", "v1", "HorizontalPodAutoscaler", "horizontalpodautoscalers",
        _NO_USAGE, ("hpa",),
    ),
    RefusedKind(
        "policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets",
        "it evicts no pods", ("pdb",),
    ),
    RefusedKind("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", _NO_VOLUMES, ("pvc",)),
    RefusedKind(
        "", "v1", "PersistentVolume", "persistentvolumes", _NO_VOLUMES, ("pv",), namespaced=False
    ),
    RefusedKind(
        "storage.k8s.io", "v1", "StorageClass", "storageclasses", _NO_VOLUMES, ("sc",),
        namespaced=False,
    ),
    RefusedKind(
        "", "v1", "ReplicationController", "replicationcontrollers",
        "it runs no ReplicationControllers: use a Deployment", ("rc",),
    ),
    RefusedKind(
        "rbac.authorization.k8s.io", "v1", "Role", "roles", _FIXED_RIGHTS
    ),
    RefusedKind(
        "rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings",
        _FIXED_RIGHTS,
    ),
    RefusedKind(
        "rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles",
        _FIXED_RIGHTS, namespaced=False,
    ),
    RefusedKind(
        "rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings",
        _FIXED_RIGHTS, namespaced=False,
    ),
)  # fmt: skip

_BY_PLURAL = {(each.group, each.version, each.plural): each for each in REFUSED}


def check(method: str, path: str) -> None:
    """Raise ApiError for the path of a refused kind: 404 for a read of one object, 405 else.

    `kubectl apply` reads before it creates, and prints one line only if it finds nothing.
    """
    split = resources.split_path(path)
    if split is None:
        return
    group, version, rest = split
    if len(rest) > 2 and rest[0] == "namespaces":
        rest = rest[2:]
    found = _BY_PLURAL.get((group, version, rest[0])) if rest else None
    if found is not None:
        message = f"the lab serves no {found.plural}: {found.why}"
        if method == "GET" and len(rest) == 2:
            raise status.ApiError(404, "NotFound", f'{found.plural} "{rest[1]}": {message}', {})
        raise status.ApiError(405, "MethodNotAllowed", message, {})


def entry(kind: RefusedKind) -> Object:
    """Return the kind as discovery lists it."""
    shown: Object = {
        "name": kind.plural,
        "singularName": kind.kind.lower(),
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": ["create", "delete", "get", "patch", "update"],
    }
    if kind.short_names:
        shown["shortNames"] = list(kind.short_names)
    return shown
