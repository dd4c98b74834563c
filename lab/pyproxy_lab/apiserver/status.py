"""The API's Status object as an exception: the errors that a request can get."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.resources import Resource


class FieldError(msgspec.Struct, frozen=True):
    """The error of one field; `reason` and `message` are those of a Status cause."""

    field: str
    reason: str
    message: str


def invalid_value(field: str, value: object, detail: str) -> FieldError:
    """Refuse a value that the field cannot have."""
    return FieldError(field, "FieldValueInvalid", f"Invalid value: {_go(value)}: {detail}")


def required(field: str, detail: str = "") -> FieldError:
    """Refuse a field that is missing."""
    message = f"Required value: {detail}" if detail else "Required value"
    return FieldError(field, "FieldValueRequired", message)


def duplicate(field: str, value: object) -> FieldError:
    """Refuse a value that another element already has."""
    return FieldError(field, "FieldValueDuplicate", f"Duplicate value: {_go(value)}")


def forbidden_field(field: str, detail: str) -> FieldError:
    """Refuse a field that may not be set, or not here."""
    return FieldError(field, "FieldValueForbidden", f"Forbidden: {detail}")


def unsupported(field: str, value: object, supported: tuple[str, ...]) -> FieldError:
    """Refuse a value that is none of those a field can have."""
    names = ", ".join(f'"{name}"' for name in sorted(supported))
    message = f"Unsupported value: {_go(value)}: supported values: {names}"
    return FieldError(field, "FieldValueNotSupported", message)


def too_many(field: str, count: int, most: int) -> FieldError:
    """Refuse a list that is too long."""
    message = f"Too many: {count}: must have at most {most} items"
    return FieldError(field, "FieldValueTooMany", message)


def too_long(field: str, most: int) -> FieldError:
    """Refuse a string that is too long."""
    message = f"Too long: may not be more than {most} bytes"
    return FieldError(field, "FieldValueTooLong", message)


class ApiError(Exception):
    """A request is refused; `status` is the body of the answer, `code` its HTTP status."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.details = details

    @property
    def status(self) -> Object:
        """The Status object."""
        answer: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
        }
        if self.details:
            answer["details"] = self.details
        answer["code"] = self.code
        return answer


def not_found(resource: Resource, name: str) -> ApiError:
    """Refuse a request about an object that does not exist."""
    return ApiError(
        404, "NotFound", f'{resource.qualified} "{name}" not found', _details(resource, name)
    )


def no_such_path() -> ApiError:
    """Refuse a path that nothing is served at."""
    return ApiError(404, "NotFound", "the server could not find the requested resource", {})


def already_exists(resource: Resource, name: str) -> ApiError:
    """Refuse to create what exists."""
    message = f'{resource.qualified} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, _details(resource, name))


def conflict(resource: Resource, name: str, why: str = "") -> ApiError:
    """Refuse a change that was made to another version than the current one."""
    why = why or (
        "the object has been modified; please apply your changes to the latest version "
        "and try again"
    )
    message = f'Operation cannot be fulfilled on {resource.qualified} "{name}": {why}'
    return ApiError(409, "Conflict", message, _details(resource, name))


def invalid(resource: Resource, name: str, errors: list[FieldError]) -> ApiError:
    """Refuse an object for what is wrong with its fields."""
    causes = [{"reason": e.reason, "message": e.message, "field": e.field} for e in errors]
    texts = [f"{e.field}: {e.message}" for e in errors]
    text = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    details: Object = {"name": name} if name else {}
    if resource.group:
        details["group"] = resource.group
    details |= {"kind": resource.kind, "causes": causes}
    message = f'{resource.qualified_kind} "{name}" is invalid: {text}'
    return ApiError(422, "Invalid", message, details)


def bad_request(message: str) -> ApiError:
    """Refuse a request that cannot be understood."""
    return ApiError(400, "BadRequest", message)


def expired(message: str) -> ApiError:
    """Refuse to go on from a version that is no longer known."""
    return ApiError(410, "Expired", message)


def too_large_version(asked: int, current: int) -> ApiError:
    """Refuse a version that is yet to come."""
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    return ApiError(504, "Timeout", message, {"causes": [cause], "retryAfterSeconds": 1})


def undeletable(resource: Resource, name: str) -> ApiError:
    """Refuse to delete a namespace that every cluster has."""
    message = f'{resource.qualified} "{name}" is forbidden: this namespace may not be deleted'
    return ApiError(403, "Forbidden", message, _details(resource, name))


def unauthorized() -> ApiError:
    """Refuse a request without a good token."""
    return ApiError(401, "Unauthorized", "Unauthorized")


def unsupported_media(accepted: tuple[str, ...]) -> ApiError:
    """Refuse a body in an unknown format."""
    message = (
        "the body of the request was in an unknown format - accepted media types include: "
        + ", ".join(accepted)
    )
    return ApiError(415, "UnsupportedMediaType", message)


def not_allowed() -> ApiError:
    """Refuse a method that the resource does not know."""
    message = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", message, {})


def _details(resource: Resource, name: str) -> Object:
    details: Object = {"name": name} if name else {}
    if resource.group:
        details["group"] = resource.group
    details["kind"] = resource.plural
    return details


def _go(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
