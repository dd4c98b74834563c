"""The little of OpenAPI v3 that kubectl asks for before it applies a manifest.

kubectl looks up whether the server checks fields itself (the parameter `fieldValidation`), and
then leaves it to the server. `kubectl explain` reads the schemas.
"""

from __future__ import annotations

import functools
from typing import Any

from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.resources import RESOURCES, Resource
from pyproxy_lab.apiserver.schema import JsonType, Shape, shape_of

V2_PATH = "/openapi/v2"
V2_TYPE = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"

_PARAMETERS = [
    {"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": True}}
    for name in ("fieldManager", "fieldValidation")
]


def index() -> Object:
    """Return /openapi/v3: which documents there are."""
    roots = sorted({resource.root.lstrip("/") for resource in RESOURCES})
    return {"paths": {root: {"serverRelativeURL": f"/openapi/v3/{root}"} for root in roots}}


@functools.cache
def document(root: str) -> Object | None:
    """Return the document of a group and version such as `apis/discovery.k8s.io/v1`."""
    found = [resource for resource in RESOURCES if resource.root == f"/{root}"]
    if not found:
        return None
    schemas: dict[str, Any] = {}
    paths: Object = {}
    for resource in found:
        _add_schema(schemas, shape_of(resource.model))
        gvk = [{"group": resource.group, "version": resource.version, "kind": resource.kind}]
        schemas[resource.model]["x-kubernetes-group-version-kind"] = gvk
        scope = "/namespaces/{namespace}" if resource.namespaced else ""
        path = f"{resource.root}{scope}/{resource.plural}"
        paths[path] = _operations(resource, {"get": "list", "post": "post"})
        paths[f"{path}/{{name}}"] = _operations(
            resource, {"get": "get", "put": "put", "patch": "patch", "delete": "delete"}
        )
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.36.2"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operations(resource: Resource, actions: dict[str, str]) -> Object:
    gvk = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    return {
        method: {
            "operationId": f"{action}{resource.kind}",
            "parameters": _PARAMETERS,
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk,
        }
        for method, action in actions.items()
    }


def _add_schema(schemas: dict[str, Any], shape: Shape) -> None:
    """Add a struct's schema, and those that it refers to."""
    if shape.model in schemas:
        return
    properties: Object = {}
    schemas[shape.model] = {"type": "object", "properties": properties}
    for name, inner in shape.fields.items():
        properties[name] = _schema(schemas, inner)


def _schema(schemas: dict[str, Any], shape: Shape) -> Object:
    match shape.type:
        case JsonType.STRUCT:
            _add_schema(schemas, shape)
            return {"$ref": f"#/components/schemas/{shape.model}"}
        case JsonType.LIST if shape.items:
            return {"type": "array", "items": _schema(schemas, shape.items)}
        case JsonType.MAP if shape.items:
            return {"type": "object", "additionalProperties": _schema(schemas, shape.items)}
        case JsonType.ANY:
            return {"x-kubernetes-int-or-string": True}
    return {"type": shape.type.value}
