"""List what the image holds, as a CycloneDX document: Debian's packages and Python's.

Run in the image, by the Python that pyproxy runs with. It says the same for the same packages.
Facts: the CycloneDX 1.5 schema, and the package URL types deb and pypi.
"""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import distributions

_FORMAT = "${Package} ${Version} ${Architecture}\n"


def _debian() -> list[dict[str, str]]:
    listed = subprocess.run(
        ["dpkg-query", "--show", f"--showformat={_FORMAT}"],
        check=True,
        capture_output=True,
        text=True,
    )
    return [
        _component(name, version, f"pkg:deb/debian/{name}@{version}?arch={architecture}")
        for name, version, architecture in map(str.split, listed.stdout.splitlines())
    ]


def _python() -> list[dict[str, str]]:
    return [
        _component(found.name, found.version, f"pkg:pypi/{found.name.lower()}@{found.version}")
        for found in distributions()
    ]


def _component(name: str, version: str, purl: str) -> dict[str, str]:
    return {"type": "library", "name": name, "version": version, "purl": purl}


if __name__ == "__main__":
    components = sorted([*_debian(), *_python()], key=lambda each: each["purl"])
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": "pyproxy"}},
        "components": components,
    }
    print(json.dumps(document, indent=1))
