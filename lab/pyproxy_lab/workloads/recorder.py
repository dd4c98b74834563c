"""Events of the controllers and the kubelet: repeated ones are counted, and the oldest deleted."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from datetime import datetime

from pyproxy_lab.workloads.objects import written
from pyproxy_lab.workloads.plan import Happening, Write, collection

_MOST = 500
"""Events of one recorder that the API has at most."""

_Key = tuple[str, str, str, str]


class Recorder:
    """Turns happenings into writes. `component` is the source that each Event names."""

    def __init__(self, component: str) -> None:
        self._component = component
        self._known: OrderedDict[_Key, tuple[str, str, int]] = OrderedDict()

    def writes(self, happening: Happening, now: datetime) -> list[Write]:
        """Return the writes of one Event: a new object, or a higher count of the one before."""
        about, moment = happening.about, written(now)
        meta = about["metadata"]
        namespace = meta.get("namespace") or "default"
        key = (str(meta.get("uid")), happening.type, happening.reason, happening.message)
        if key in self._known:
            space, name, count = self._known[key]
            self._known[key] = (space, name, count + 1)
            self._known.move_to_end(key)
            changes = {"count": count + 1, "lastTimestamp": moment}
            return [Write("PATCH", "events", f"{collection('events', space)}/{name}", changes)]
        name = f"{meta['name']}.{secrets.token_hex(8)}"
        self._known[key] = (namespace, name, 1)
        involved = {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "name": meta["name"],
            "uid": meta["uid"],
            "resourceVersion": meta["resourceVersion"],
        }
        if meta.get("namespace"):
            involved["namespace"] = namespace
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": involved,
            "type": happening.type,
            "reason": happening.reason,
            "message": happening.message,
            "source": {"component": self._component},
            "firstTimestamp": moment,
            "lastTimestamp": moment,
            "count": 1,
        }
        writes = [Write("POST", "events", collection("events", namespace), event)]
        if len(self._known) > _MOST:
            _, (space, oldest, _) = self._known.popitem(last=False)
            writes.append(Write("DELETE", "events", f"{collection('events', space)}/{oldest}"))
        return writes
