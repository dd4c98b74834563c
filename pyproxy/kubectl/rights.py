"""The rights that the plugin needs, and the error of a missing one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyproxy.errors import UsageError
from pyproxy.source.client import ApiStatusError

RIGHTS_FILE = "deploy/kubectl/rbac.yaml"
"""The manifest with all rights of the plugin, those of `check` aside."""

CHECK_RIGHTS_FILE = "deploy/kubectl/check.yaml"
"""The manifest with the further rights of `check`."""


@contextmanager
def required(file: str = RIGHTS_FILE) -> Iterator[None]:
    """Turn the error of a missing right into a UsageError that names right and manifest."""
    try:
        yield
    except ApiStatusError as error:
        raise missing_right(error, file) or error from None


def missing_right(error: ApiStatusError, file: str = RIGHTS_FILE) -> UsageError | None:
    """Return the UsageError for a missing right, None for another error."""
    if error.status == 401:
        return UsageError(f"{error}: log in, or correct the credentials in the kubeconfig")
    if error.status == 403:
        return UsageError(f"{error}: bind the roles of {file} to this user")
    return None
