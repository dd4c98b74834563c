"""Validation of names, labels and port names, with Kubernetes' error messages.

Each function returns the error, or an empty string. Facts: k8s.io/apimachinery's validation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.status import FieldError, forbidden_field, invalid_value, required

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_QUALIFIED = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL_VALUE = rf"({_QUALIFIED})?"
_PORT_NAME = r"[-a-z0-9]+"

_DNS_LABEL = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and "
    "must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used "
    f"for validation is '{_LABEL}')"
)
_DNS_SUBDOMAIN = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used "
    f"for validation is '{_LABEL}(\\.{_LABEL})*')"
)
_NAME_PART = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end "
    "with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for "
    f"validation is '{_QUALIFIED}')"
)
_VALUE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  "
    f"or '12345', regex used for validation is '{_LABEL_VALUE}')"
)


def dns_label_problem(text: str) -> str:
    """Check an RFC 1123 label of at most 63 characters."""
    if len(text) > 63:
        return "must be no more than 63 characters"
    return "" if re.fullmatch(_LABEL, text) else _DNS_LABEL


def dns_subdomain_problem(text: str) -> str:
    """Check an RFC 1123 subdomain of at most 253 characters."""
    if len(text) > 253:
        return "must be no more than 253 characters"
    return "" if re.fullmatch(_SUBDOMAIN, text) else _DNS_SUBDOMAIN


def qualified_name_problem(text: str) -> str:
    """Check a label's or an annotation's key: a name, or a prefix, a slash and a name."""
    prefix, slash, name = text.rpartition("/")
    if slash and (problem := dns_subdomain_problem(prefix)):
        return f"prefix part {problem}" if prefix else "prefix part must be non-empty"
    if not name:
        return f"name part must be non-empty; {_NAME_PART}"
    if len(name) > 63:
        return "name part must be no more than 63 characters"
    return "" if re.fullmatch(_QUALIFIED, name) else _NAME_PART


def label_value_problem(text: str) -> str:
    """Check a label's value."""
    if len(text) > 63:
        return "must be no more than 63 characters"
    return "" if re.fullmatch(_LABEL_VALUE, text) else _VALUE


def port_name_problem(text: str) -> str:
    """Check a named port: an IANA service name."""
    if len(text) > 15:
        return "must be no more than 15 characters"
    if not re.fullmatch(_PORT_NAME, text):
        return "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"
    if not re.search("[a-z]", text):
        return "must contain at least one letter (a-z)"
    if "--" in text:
        return "must not contain consecutive hyphens"
    if text[0] == "-" or text[-1] == "-":
        return "must not begin or end with a hyphen"
    return ""


def metadata_errors(meta: Object, name_problem: str) -> list[FieldError]:
    """Check metadata; `name_problem` is the error of its name, which its kind determines."""
    errors = []
    if not meta.get("name"):
        errors.append(required("metadata.name", "name or generateName is required"))
    elif name_problem:
        errors.append(invalid_value("metadata.name", meta["name"], name_problem))
    errors += labels_errors(meta.get("labels") or {}, "metadata.labels")
    for key in meta.get("annotations") or {}:
        if problem := qualified_name_problem(key.lower()):
            errors.append(invalid_value("metadata.annotations", key, problem))
    for finalizer in meta.get("finalizers") or ():
        if problem := qualified_name_problem(finalizer):
            errors.append(invalid_value("metadata.finalizers", finalizer, problem))
    return errors


def labels_errors(labels: Mapping[str, str], field: str) -> list[FieldError]:
    """Check labels, or a selector of labels."""
    errors = []
    for key, value in labels.items():
        if problem := qualified_name_problem(key):
            errors.append(invalid_value(field, key, problem))
        if problem := label_value_problem(value):
            errors.append(invalid_value(field, value, problem))
    return errors


def metadata_update_errors(new: Object, old: Object) -> list[FieldError]:
    """Check that nothing changed that cannot once an object exists."""
    errors = []
    for field in ("name", "namespace", "uid"):
        if new.get(field, "") != old.get(field, ""):
            message = "field is immutable"
            errors.append(invalid_value(f"metadata.{field}", new.get(field, ""), message))
    if old.get("deletionTimestamp"):
        added = set(new.get("finalizers") or ()) - set(old.get("finalizers") or ())
        if added:
            errors.append(
                forbidden_field(
                    "metadata.finalizers",
                    "no new finalizers can be added if the object is being deleted, found new "
                    f"finalizers {sorted(added)}",
                )
            )
    return errors
