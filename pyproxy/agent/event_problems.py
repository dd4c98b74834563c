"""Note the problems of objects that events bring, and whether this node is eligible."""

from __future__ import annotations

from pyproxy.agent.cluster_state import ClusterState
from pyproxy.agent.commit import Observers
from pyproxy.agent.problems import ProblemSource, ProblemTracker
from pyproxy.errors import Problem
from pyproxy.model.events import Delete, Event, InvalidObject, Synced, Upsert
from pyproxy.model.objects import Kind, Node, ObjectName, Service


class EventProblems:
    """Notes the problems of decoding in a tracker, and the Node's eligibility in /healthz.

    For the agent's thread; does not block.
    """

    def __init__(
        self, problems: ProblemTracker, cluster_state: ClusterState, observers: Observers
    ) -> None:
        self._problems = problems
        self._cluster_state = cluster_state
        self._observers = observers

    def note(self, event: Event, changed: Kind | None = None) -> None:
        """Note an event, which the cluster state has taken in with the change `changed`."""
        if isinstance(event, Upsert) and not isinstance(event.obj, Node):
            # Nearly all events of a list; most objects are valid.
            obj = event.obj
            if obj.problems or self._problems:
                kind = Kind.SERVICE if isinstance(obj, Service) else Kind.ENDPOINT_SLICE
                self._decoded(kind, obj.name, obj.problems)
        else:
            self._note_other(event, changed)

    def count(self) -> None:
        """Set the metric of invalid objects, if their number may have changed."""
        if not self._problems.changed:
            return
        for kind, count in self._problems.counts().items():
            self._observers.metrics.changes.invalid(kind, count)

    def _note_other(self, event: Event, changed: Kind | None) -> None:
        health = self._observers.health
        match event:
            case Upsert(obj=Node() as node):
                health.set_node_eligible(node.eligible)
                self._decoded(Kind.NODE, node.name, node.problems)
            case Delete(kind=kind, name=name):
                self._decoded(kind, name, ())
                if kind is Kind.NODE and changed:
                    health.set_node_eligible(eligible=False)
            case Synced(kind=kind, names=names, invalid=invalid):
                # Problems name objects as text, because an invalid object may have no valid name.
                self._problems.remove_absent(
                    ProblemSource.DECODING,
                    kind,
                    lambda name: name in invalid or _object_name(name) in names,
                )
                node_now = self._cluster_state.node
                if kind is Kind.NODE and node_now is not None:
                    health.set_node_eligible(node_now.eligible)
            case InvalidObject(problem=problem):
                subject = (problem.kind, problem.name)
                self._problems.found(ProblemSource.DECODING, subject, (problem,))

    def _decoded(self, kind: Kind, name: ObjectName | str, problems: tuple[Problem, ...]) -> None:
        # Most objects are valid, and a list has tens of thousands.
        if problems or self._problems:
            subject = (kind.value, str(name))
            self._problems.found(ProblemSource.DECODING, subject, problems)


def _object_name(text: str) -> ObjectName:
    namespace, _, name = text.rpartition("/")
    return ObjectName(namespace, name)
