"""Access rights: an administrator has all of them, a Service proxy those that it needs."""

from __future__ import annotations

import hmac

import msgspec

from pyproxy_lab.apiserver import status
from pyproxy_lab.apiserver.resources import Resource
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.apiserver.status import ApiError

_READ = frozenset({"get", "list", "watch"})
_WRITE_EVENTS = frozenset({"create", "patch", "update"})


class User(msgspec.Struct, frozen=True):
    """A user; `verbs` are the allowed ones by resource, None for all.

    The key of a subresource has its name after a slash, as in "pods/exec".
    """

    name: str
    verbs: dict[str, frozenset[str]] | None = None


ADMIN = User("system:admin")
# The rights of the ClusterRole system:node-proxier.
PROXY = User(
    "system:kube-proxy",
    {
        "services": _READ,
        "endpointslices.discovery.k8s.io": _READ,
        "nodes": _READ,
        "events": _WRITE_EVENTS,
        "events.events.k8s.io": _WRITE_EVENTS,
    },
)


class Action(msgspec.Struct, frozen=True):
    """The verb and resource of a request."""

    verb: str
    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def qualified(self) -> str:
        """The resource and its subresource, as in the keys of a user's verbs."""
        below = f"/{self.subresource}" if self.subresource else ""
        return self.resource.qualified + below


def authenticate(settings: Settings, authorization: str) -> User:
    """Return the user of a request, by its Authorization header. Raises ApiError (401)."""
    if not settings.token and not settings.proxy_token:
        return ADMIN
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() == "bearer":
        for expected, user in ((settings.token, ADMIN), (settings.proxy_token, PROXY)):
            if expected and hmac.compare_digest(token.strip().encode(), expected.encode()):
                return user
    raise status.unauthorized()


def authorize(user: User, action: Action) -> None:
    """Let an action pass, or raise ApiError (403)."""
    if user.verbs is None:
        return
    resource = action.resource
    if action.verb in user.verbs.get(action.qualified, ()):
        return
    what = f"{resource.plural}/{action.subresource}" if action.subresource else resource.plural
    named = f' "{action.name}"' if action.name else ""
    where = f'in the namespace "{action.namespace}"' if action.namespace else "at the cluster scope"
    details = {"name": action.name} if action.name else {}
    if resource.group:
        details["group"] = resource.group
    raise ApiError(
        403,
        "Forbidden",
        f'{resource.qualified}{named} is forbidden: User "{user.name}" cannot {action.verb} '
        f'resource "{what}" in API group "{resource.group}" {where}',
        details | {"kind": resource.plural},
    )
