"""The objects of a check in the cluster: create them, wait for the pods, and remove all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from urllib.parse import quote

import msgspec

from pyproxy.errors import SourceError, UsageError, one_line
from pyproxy.kubectl.check import objects
from pyproxy.kubectl.check.objects import JsonObject, Pod
from pyproxy.kubectl.check.plan import Service
from pyproxy.kubectl.fan_out import Slots, in_threads
from pyproxy.kubectl.rights import CHECK_RIGHTS_FILE, required
from pyproxy.source.client import ApiStatusError, Client
from pyproxy.source.object_lists import list_objects, read_list

_NAMESPACES = "/api/v1/namespaces"
_PARALLEL = 8
_PAUSE = 0.2
_MISSING = 404
_LONGEST_TEXT = 200
_SELECTOR = {"labelSelector": ",".join(f"{k}={v}" for k, v in objects.LABEL.items())}


class _Meta(msgspec.Struct, frozen=True):
    name: str = ""


class _Named(msgspec.Struct, frozen=True):
    metadata: _Meta = _Meta()


class _Address(msgspec.Struct, frozen=True):
    type: str = ""
    address: str = ""


class _NodeStatus(msgspec.Struct, frozen=True):
    addresses: list[_Address] | None = None


class _Node(msgspec.Struct, frozen=True):
    metadata: _Meta = _Meta()
    status: _NodeStatus = _NodeStatus()


class _Ip(msgspec.Struct, frozen=True):
    ip: str = ""


class _Condition(msgspec.Struct, frozen=True):
    type: str = ""
    status: str = ""


class _Reason(msgspec.Struct, frozen=True):
    reason: str | None = None
    message: str | None = None


class _State(msgspec.Struct, frozen=True):
    waiting: _Reason | None = None
    terminated: _Reason | None = None


class _ContainerStatus(msgspec.Struct, frozen=True):
    state: _State = _State()


class _PodStatus(msgspec.Struct, frozen=True, rename="camel"):
    phase: str | None = None
    reason: str | None = None
    message: str | None = None
    pod_i_ps: list[_Ip] | None = msgspec.field(default=None, name="podIPs")
    conditions: list[_Condition] | None = None
    container_statuses: list[_ContainerStatus] | None = None

    @property
    def ready(self) -> bool:
        return any(c.type == "Ready" and c.status == "True" for c in self.conditions or ())

    @property
    def failed(self) -> bool:
        return self.phase in {"Failed", "Succeeded"}

    def problem(self) -> str:
        """Return why the pod is not ready."""
        for each in self.container_statuses or ():
            stopped = each.state.waiting or each.state.terminated
            if stopped is not None and stopped.reason:
                text = f"{stopped.reason} {stopped.message or ''}"
                return one_line(text.strip(), _LONGEST_TEXT)
        text = f"{self.reason or self.phase or 'Pending'} {self.message or ''}"
        return one_line(text.strip(), _LONGEST_TEXT)


class _Pod(msgspec.Struct, frozen=True):
    metadata: _Meta = _Meta()
    status: _PodStatus = _PodStatus()


class _Port(msgspec.Struct, frozen=True, rename="camel"):
    node_port: int = 0


class _ServiceSpec(msgspec.Struct, frozen=True, rename="camel"):
    cluster_i_ps: list[str] | None = msgspec.field(default=None, name="clusterIPs")
    ports: list[_Port] | None = None


class _Service(msgspec.Struct, frozen=True):
    spec: _ServiceSpec = _ServiceSpec()


class PodsFound(msgspec.Struct, frozen=True):
    """Addresses of the pods that are ready, and the reasons of the others, by pod."""

    addresses: Mapping[str, tuple[str, ...]]
    problems: Mapping[str, str]


class CheckNamespace:
    """The namespace of one check. Every method blocks.

    Raises UsageError if a right is missing, SourceError if the API server does not respond.
    """

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self._client = client
        self._path = f"{_NAMESPACES}/{quote(name)}"

    def create(self) -> None:
        """Create the namespace."""
        self._post(_NAMESPACES, objects.namespace(self.name))

    def create_pods(self, pods: Iterable[Pod], image: str) -> None:
        """Create the pods."""
        made = [objects.pod(each, image) for each in pods]
        for _ in in_threads(self._create_pod, made, Slots(_PARALLEL, _PARALLEL)):
            pass

    def wait_ready(
        self, pods: Sequence[Pod], timeout: float, report: Callable[[int], None]
    ) -> PodsFound:
        """Wait until all pods are ready or have failed, for `timeout` seconds at most."""
        deadline = time.monotonic() + timeout
        while True:
            with required(CHECK_RIGHTS_FILE):
                listed = list_objects(self._client, f"{self._path}/pods", _Pod)
                found = {each.metadata.name: each.status for each in listed}
            waiting = [
                each for each in pods
                if (status := found.get(each.name)) and not status.ready and not status.failed
            ]  # fmt: skip
            report(len(pods) - len(waiting))
            if not waiting or time.monotonic() > deadline:
                break
            time.sleep(_PAUSE)
        addresses, problems = {}, {}
        for each in pods:
            status = found.get(each.name, _PodStatus(reason="deleted by another program"))
            if status.ready:
                addresses[each.name] = tuple(ip.ip for ip in status.pod_i_ps or ())
            else:
                problems[each.name] = status.problem()
        return PodsFound(addresses, problems)

    def create_service(self, made: JsonObject) -> Service:
        """Create a Service, and return the addresses that it got."""
        answer = self._post(f"{self._path}/services", made)
        spec = msgspec.json.decode(answer, type=_Service).spec
        ports = [port.node_port for port in spec.ports or ()]
        return Service(tuple(spec.cluster_i_ps or ()), ports[0] if ports else 0)

    def delete_pod(self, pod: Pod) -> None:
        """Delete a pod, which has its grace period to end."""
        options = msgspec.json.encode({"gracePeriodSeconds": pod.grace})
        with required(CHECK_RIGHTS_FILE):
            self._client.delete(f"{self._path}/pods/{quote(pod.name)}", options)

    def remove(self, timeout: float) -> bool:
        """Delete the namespace and all in it; return False if it still exists at the timeout."""
        deadline = time.monotonic() + timeout
        try:
            with required(CHECK_RIGHTS_FILE):
                self._client.delete(self._path, b"{}")
            while time.monotonic() < deadline:
                with required(CHECK_RIGHTS_FILE):
                    read_list(self._client, self._path, {}, _Named)
                time.sleep(_PAUSE)
        except ApiStatusError as error:
            if error.status == _MISSING:
                return True
            raise
        return False

    def _create_pod(self, made: JsonObject) -> None:
        self._post(f"{self._path}/pods", made)

    def _post(self, path: str, made: JsonObject) -> bytes:
        with required(CHECK_RIGHTS_FILE):
            try:
                return self._client.post(path, msgspec.json.encode(made))
            except ApiStatusError as error:
                if error.status in {401, 403}:
                    raise
                raise SourceError(f"cannot create {made['kind']}: {error}") from error


def leftovers(client: Client) -> tuple[str, ...]:
    """Return the namespaces of earlier checks that still exist, or of checks that run now."""
    with required(CHECK_RIGHTS_FILE):
        found = list_objects(client, _NAMESPACES, _Named, _SELECTOR)
        return tuple(sorted(each.metadata.name for each in found))


def node_addresses(client: Client, nodes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the internal addresses of nodes, without those that have none."""
    wanted = set(nodes)
    with required():
        found = {
            node.metadata.name: tuple(
                each.address for each in node.status.addresses or () if each.type == "InternalIP"
            )
            for node in list_objects(client, "/api/v1/nodes", _Node)
        }
    return {name: found[name] for name in sorted(wanted & found.keys()) if found[name]}


def try_remove(namespace: CheckNamespace, timeout: float) -> str:
    """Remove a namespace, and return why it still exists, else empty text."""
    with suppress(KeyboardInterrupt):
        try:
            if namespace.remove(timeout):
                return ""
        except (SourceError, UsageError) as error:
            return f"cannot remove namespace {namespace.name}: {error}"
        return (
            f"namespace {namespace.name} still exists {timeout:.0f} s after its deletion: "
            f"see kubectl get namespace {namespace.name} -o yaml"
        )
    return f"stopped before namespace {namespace.name} was gone"
