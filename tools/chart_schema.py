"""Write the schema of the chart's value `config` from the agent's own configuration.

python tools/chart_schema.py deploy/helm/pyproxy/values.schema.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pyproxy.config.schema import KubeProxyConfiguration

_CHARTS_OWN = ("apiVersion", "kind")
"""Fields that the chart's template writes."""


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of the value `config`: any other field is an error."""
    (whole,), definitions = msgspec.json.schema_components(
        [KubeProxyConfiguration], ref_template="{name}"
    )
    found = _plain(whole, definitions)
    for name in _CHARTS_OWN:
        del found["properties"][name]
    return found


def generate(text: str) -> str:
    """Return the text of values.schema.json with its `config` written again."""
    schema = json.loads(text)
    schema["properties"]["config"] = config_schema()
    return json.dumps(schema, indent=2) + "\n"


def _plain(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema without references, titles and defaults."""
    if "$ref" in schema:
        return _plain(definitions[schema["$ref"]], definitions)
    kept = {key: schema[key] for key in ("type", "additionalProperties") if key in schema}
    if "items" in schema:
        kept["items"] = _plain(schema["items"], definitions)
    if "anyOf" in schema:
        kept["anyOf"] = [_plain(each, definitions) for each in schema["anyOf"]]
    if "properties" in schema:
        kept["additionalProperties"] = False
        kept["properties"] = {
            name: _plain(each, definitions) for name, each in schema["properties"].items()
        }
    return kept


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(generate(path.read_text()))
