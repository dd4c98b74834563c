"""Strategic merge patch: a merge patch that knows which lists are sets of named elements.

`kubectl apply`, `edit` and `patch` send it for the built-in kinds. Directives: `$patch` (replace,
delete, merge) in an object or a list, `$deleteFromPrimitiveList/x`, `$setElementOrder/x` and
`$retainKeys`.
"""

from __future__ import annotations

import copy
from typing import Any

from pyproxy_lab.apiserver import status
from pyproxy_lab.apiserver.objects import Object

_DELETE_FROM = "$deleteFromPrimitiveList/"
_SET_ORDER = "$setElementOrder/"
_RETAIN = "$retainKeys"
_DIRECTIVE = "$patch"

# The patchMergeKey of each list whose patchStrategy is merge, by the list's field and, where the
# same name means different lists, the field that holds the list's owner. An empty key is a list
# of plain values. Facts: the Go types of k8s.io/api v0.36.
_MERGE_KEYS: dict[tuple[str, str], str] = {
    ("", "ownerReferences"): "uid",
    ("", "finalizers"): "",
    ("", "conditions"): "type",
    ("spec", "ports"): "port",
    ("containers", "ports"): "containerPort",
    ("initContainers", "ports"): "containerPort",
    ("ephemeralContainers", "ports"): "containerPort",
    ("", "containers"): "name",
    ("", "initContainers"): "name",
    ("", "ephemeralContainers"): "name",
    ("", "env"): "name",
    ("", "volumeMounts"): "mountPath",
    ("", "volumeDevices"): "devicePath",
    ("spec", "volumes"): "name",
    ("", "imagePullSecrets"): "name",
    ("", "hostAliases"): "ip",
    ("", "topologySpreadConstraints"): "topologyKey",
    ("", "schedulingGates"): "name",
    ("", "resourceClaims"): "name",
    ("", "podIPs"): "ip",
    ("", "hostIPs"): "ip",
    ("", "podCIDRs"): "",
    ("status", "addresses"): "type",
    ("", "secrets"): "name",
}


def apply(target: Object, patch: Any) -> Object:
    """Apply a strategic merge patch and return the result; neither argument is changed.

    Raises ApiError (400) for a directive or an element that makes no sense.
    """
    if not isinstance(patch, dict):
        raise status.bad_request("a strategic merge patch must be an object")
    return _object(target, patch, "")


def _object(target: Object, patch: Object, owner: str) -> Object:
    directive = patch.get(_DIRECTIVE)
    if directive == "replace":
        return {k: copy.deepcopy(v) for k, v in patch.items() if k != _DIRECTIVE}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise status.bad_request(f"Unknown patch type: {directive}")
    result = dict(target)
    if _RETAIN in patch:
        result = {key: value for key, value in result.items() if key in patch[_RETAIN]}
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            below = result.get(key)
            result[key] = _object(below if isinstance(below, dict) else {}, value, key)
        elif isinstance(value, list):
            result[key] = _list(result.get(key), value, owner, key)
        else:
            result[key] = value
    _direct_lists(result, patch, owner)
    return result


def _direct_lists(result: Object, patch: Object, owner: str) -> None:
    """Take out of lists, and put in order, what the patch's directives beside them say."""
    for key, removed in patch.items():
        if key.startswith(_DELETE_FROM):
            name = key.removeprefix(_DELETE_FROM)
            result[name] = [item for item in result.get(name) or () if item not in removed]
    for key, order in patch.items():
        if key.startswith(_SET_ORDER):
            name = key.removeprefix(_SET_ORDER)
            if isinstance(result.get(name), list):
                result[name] = _ordered(result[name], order, _merge_key(owner, name))


def _list(target: Any, patch: list[Any], owner: str, name: str) -> list[Any]:
    key = _merge_key(owner, name)
    existing = list(target) if isinstance(target, list) else []
    if key is None:
        return _without_directives(patch)
    if key == "":
        return existing + [item for item in patch if item not in existing]
    if any(isinstance(i, dict) and i.get(_DIRECTIVE) == "replace" for i in patch):
        return _without_directives(patch)
    result = existing
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise status.bad_request(f"map: {item!r} does not contain declared merge key: {key}")
        found = [index for index, have in enumerate(result) if have.get(key) == item[key]]
        if item.get(_DIRECTIVE) == "delete":
            result = [have for have in result if have.get(key) != item[key]]
        elif found:
            result[found[0]] = _object(result[found[0]], item, name)
        else:
            result.append(_object({}, item, name))
    return result


def _without_directives(patch: list[Any]) -> list[Any]:
    plain = copy.deepcopy(patch)
    return [i for i in plain if not (isinstance(i, dict) and _DIRECTIVE in i)]


def _ordered(items: list[Any], order: list[Any], key: str | None) -> list[Any]:
    """Sort the elements that the order names as it says; the others keep their places after."""

    def identity(item: Any) -> Any:
        return item.get(key) if key and isinstance(item, dict) else item

    places = [identity(item) for item in order]
    named = [item for item in items if identity(item) in places]
    others = [item for item in items if identity(item) not in places]
    return sorted(named, key=lambda item: places.index(identity(item))) + others


def _merge_key(owner: str, name: str) -> str | None:
    return _MERGE_KEYS.get((owner, name), _MERGE_KEYS.get(("", name)))
