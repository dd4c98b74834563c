"""ControllerRevisions: the templates that a StatefulSet or a DaemonSet has had, by number."""

from __future__ import annotations

from collections.abc import Iterable

from pyproxy_lab.client import JsonObject
from pyproxy_lab.workloads import objects
from pyproxy_lab.workloads.plan import Write, create, delete, patch

HASH = "controller-revision-hash"


class History:
    """The revisions of one owner; `current` is the name of the one of its template.

    `writes` create or renumber the current revision and delete those that no pod uses, beyond
    revisionHistoryLimit.
    """

    def __init__(
        self, owner: JsonObject, revisions: Iterable[JsonObject], pods: list[JsonObject]
    ) -> None:
        template = owner["spec"]["template"]
        uid = owner["metadata"]["uid"]
        mine = [
            each
            for each in revisions
            if (controller := objects.controller_of(each)) and controller["uid"] == uid
        ]
        mine.sort(key=lambda each: each["revision"])
        label = objects.digest(template)
        self.current = f"{owner['metadata']['name']}-{label}"
        self._templates = {each["metadata"]["name"]: _template(each) for each in mine}
        self._templates[self.current] = template
        self.writes = _writes(owner, mine, self.current)
        used = {revision_of(pod) for pod in pods} | {self.current}
        unused = [each for each in mine if each["metadata"]["name"] not in used]
        surplus = max(len(unused) - owner["spec"]["revisionHistoryLimit"], 0)
        self.writes += [delete("controllerrevisions", each) for each in unused[:surplus]]

    def template(self, name: str) -> JsonObject:
        """Return the template of a revision, the current one for a name that is not known."""
        return self._templates.get(name) or self._templates[self.current]


def revision_of(pod: JsonObject) -> str:
    """Return the name of the revision that a pod was made of."""
    return str((pod["metadata"].get("labels") or {}).get(HASH, ""))


def _writes(owner: JsonObject, mine: list[JsonObject], current: str) -> list[Write]:
    last = mine[-1]["revision"] if mine else 0
    for each in mine:
        if each["metadata"]["name"] == current:
            if each["revision"] == last:
                return []
            return [patch("controllerrevisions", each, {"revision": last + 1})]
    meta, template = owner["metadata"], owner["spec"]["template"]
    labels = (template.get("metadata") or {}).get("labels") or {}
    annotations = {
        name: value
        for name, value in (meta.get("annotations") or {}).items()
        if name == "kubernetes.io/change-cause"
    }
    made = {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": current,
            "namespace": meta["namespace"],
            "labels": {**labels, HASH: current.rpartition("-")[2]},
            **({"annotations": annotations} if annotations else {}),
            "ownerReferences": [objects.reference(owner)],
        },
        # kubectl rollout undo sends the data as a strategic merge patch of the owner.
        "data": {"spec": {"template": {**template, "$patch": "replace"}}},
        "revision": last + 1,
    }
    return [create("controllerrevisions", made)]


def _template(revision: JsonObject) -> JsonObject:
    template = revision["data"]["spec"]["template"]
    return {name: value for name, value in template.items() if name != "$patch"}
