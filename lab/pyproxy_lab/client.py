"""A client of the Kubernetes API for the lab: objects as JSON, one request at a time."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import msgspec
import urllib3

from pyproxy_lab.namespace import LabError, Namespace

JsonObject: TypeAlias = dict[str, Any]
"""An API object, or a part of one, as decoded JSON."""

SERVICES = "services"
ENDPOINT_SLICES = "endpointslices"
PODS = "pods"

_OK = range(200, 300)
_MISSING, _EXISTS = 404, 409


class ApiError(LabError):
    """The API server responded with the error status `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ApiClient:
    """Requests to one API server, without a check of its certificate.

    They are made in the network namespace `netns`, None for this process's own. Every method
    blocks, and raises ApiError for an error status, LabError where the server does not respond.
    """

    def __init__(self, url: str, token: str = "", netns: Namespace | None = None) -> None:
        self.url = url
        self.token = token
        self._netns = netns
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = urllib3.PoolManager(cert_reqs="CERT_NONE", headers=headers, retries=2)

    def get(self, path: str) -> JsonObject:
        """Read an object or a list."""
        return self._request("GET", path)

    def create(self, path: str, obj: JsonObject) -> JsonObject:
        """Add an object to the collection at `path`."""
        return self._request("POST", path, obj)

    def ensure(self, path: str, obj: JsonObject) -> None:
        """Create an object unless it is there."""
        try:
            self.create(path, obj)
        except ApiError as error:
            if error.status != _EXISTS:
                raise

    def replace(self, path: str, obj: JsonObject) -> JsonObject:
        """Write an object over the one that is there, whatever its version."""
        version = self.get(path)["metadata"]["resourceVersion"]
        metadata = obj["metadata"] | {"resourceVersion": version}
        return self._request("PUT", path, obj | {"metadata": metadata})

    def patch(self, path: str, changes: JsonObject) -> JsonObject:
        """Change some fields (a JSON merge patch)."""
        return self._request("PATCH", path, changes, "application/merge-patch+json")

    def delete(self, path: str, *, now: bool = False) -> None:
        """Remove an object, which may be gone already; `now` leaves a pod no time to end."""
        try:
            self._request("DELETE", path + ("?gracePeriodSeconds=0" if now else ""))
        except ApiError as error:
            if error.status != _MISSING:
                raise

    def _request(
        self, method: str, path: str, body: JsonObject | None = None, kind: str = "application/json"
    ) -> JsonObject:
        headers = {**self._http.headers, "Content-Type": kind, "Accept": "application/json"}
        encoded = None if body is None else msgspec.json.encode(body)
        send = partial(self._http.request, method, self.url + path, body=encoded, headers=headers)
        try:
            response = self._netns.call(send) if self._netns else send()
        except urllib3.exceptions.HTTPError as error:
            raise LabError(f"{method} {self.url}{path}: {error}") from error
        status, data = response.status, response.data
        if status not in _OK:
            raise ApiError(f"{method} {path}: {status}: {_message(data)}", status)
        return msgspec.json.decode(data, type=JsonObject)


def collection(namespace: str, kind: str) -> str:
    """Return the path of a namespace's Services, Pods or EndpointSlices."""
    group = "/apis/discovery.k8s.io/v1" if kind == ENDPOINT_SLICES else "/api/v1"
    return f"{group}/namespaces/{namespace}/{kind}"


def _message(body: bytes) -> str:
    """Return the message of a Status, or the start of the body where it is none."""
    try:
        return str(msgspec.json.decode(body, type=JsonObject)["message"])
    except (msgspec.DecodeError, msgspec.ValidationError, KeyError):
        return body[:200].decode(errors="replace")
