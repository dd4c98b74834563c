"""The cleanup's container removes ipvs mode's objects, on the kernel of the virtual machine."""

from __future__ import annotations

import pytest
from pyproxy_lab import modes

from tests.deploy.test_cleanup_rights import (
    here,
    test_the_containers_rights_remove_the_rules_of_every_mode,
)

__all__ = ["here", "test_the_containers_rights_remove_the_rules_of_every_mode"]

pytestmark = [
    pytest.mark.vm,
    pytest.mark.kernel,
    pytest.mark.parametrize("mode", [modes.IPVS], ids=["ipvs"], indirect=True, scope="module"),
]
