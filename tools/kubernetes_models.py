"""Write the fields of the kinds that the lab's API server has, from the Kubernetes client's models.

python -m tools.kubernetes_models >lab/pyproxy_lab/apiserver/models.json
"""

from __future__ import annotations

import json
import re
import sys

from kubernetes import client
from pyproxy_lab.apiserver.resources import RESOURCES

MANIFESTS = ("V1ClusterRole", "V1ClusterRoleBinding", "V1Job", "V1Role", "V1RoleBinding")
"""Models of kinds that `deploy/` has and the lab does not; tests check the manifests with them."""


def generate() -> str:
    """Return JSON: the client's version, and each model's fields with their types, by its name.

    A type is the client's word for it: a plain one, a model, or a list or dict of one.
    """
    models: dict[str, dict[str, str]] = {}
    waiting = sorted({*MANIFESTS, *(resource.model for resource in RESOURCES)})
    while waiting:
        name = waiting.pop()
        if name in models:
            continue
        kind = getattr(client, name)
        models[name] = {kind.attribute_map[each]: text for each, text in kind.openapi_types.items()}
        words = {word for text in models[name].values() for word in re.findall(r"\w+", text)}
        waiting += sorted(word for word in words if hasattr(client, word))
    found = {"client": client.__version__, "models": dict(sorted(models.items()))}
    return json.dumps(found, indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(generate())
