"""List what the image holds, Debian's packages and Python's, as a CycloneDX document.

    sbom.py ROOT SITE_PACKAGES...

ROOT is the folder that unpack.sh has filled, SITE_PACKAGES are Python's folders of packages. The
output is the same for the same packages: it has no time, and its serial number is a hash of their
names and versions.
"""

from __future__ import annotations

import shlex
import sys
import uuid
from collections.abc import Iterator, Sequence
from email.parser import HeaderParser
from importlib.metadata import distributions
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL


def debian(root: Path) -> Iterator[Component]:
    """Return a component for each of Debian's packages."""
    release = dict(
        line.split("=", 1) for line in (root / "etc/os-release").read_text().splitlines()
    )
    distro = f"debian-{shlex.split(release['VERSION_ID'])[0]}"
    for file in sorted((root / "var/lib/dpkg/status.d").iterdir()):
        if file.suffix == ".md5sums":
            continue
        fields = HeaderParser().parsestr(file.read_text())
        name, version = fields["Package"], fields["Version"]
        qualifiers = {"arch": fields["Architecture"], "distro": distro}
        yield _component(PackageURL("deb", "debian", name, version, qualifiers))


def python(folders: Sequence[str]) -> Iterator[Component]:
    """Return a component for each distribution, with its licence if the metadata has one."""
    for found in distributions(path=list(folders)):
        purl = PackageURL("pypi", None, found.name.lower(), found.version)
        yield _component(purl, found.metadata.get("License-Expression"))


def _component(purl: PackageURL, licence: str | None = None) -> Component:
    return Component(
        type=ComponentType.LIBRARY,
        name=purl.name,
        version=purl.version,
        purl=purl,
        bom_ref=purl.to_string(),
        licenses=[LicenseFactory().make_from_string(licence)] if licence else (),
    )


def main(root: Path, folders: Sequence[str]) -> None:
    """Print the document."""
    components = [*debian(root), *python(folders)]
    names = "\n".join(sorted(str(each.purl) for each in components))
    version = next(each.version for each in components if each.name == "kube-pyproxy")
    image = Component(
        type=ComponentType.CONTAINER, name="pyproxy", version=version, bom_ref="image"
    )
    bom = Bom(
        metadata=BomMetaData(component=image),
        components=components,
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, names),
    )
    bom.metadata.timestamp = None
    bom.register_dependency(image, components)
    print(JsonV1Dot6(bom).output_as_string(indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
