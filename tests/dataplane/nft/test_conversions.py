"""Conversions in the base rules that new kernels refuse."""

from __future__ import annotations

import re

import pytest

from pyproxy.dataplane.ipvs import ruleset
from pyproxy.dataplane.nft.base_rules import BaseRules
from pyproxy.dataplane.nftables import base_rules
from tests.namespaces import empty_namespace

CONVERSION = re.compile(r"byteorder .*, (?P<size>\d+), (?P<length>\d+)\)")


@pytest.mark.kernel
@pytest.mark.parametrize(
    "base",
    [
        base_rules.base_rules(base_rules.NftablesOptions(shield_loopback=True)),
        ruleset.base_rules(ruleset.Options()),
    ],
    ids=["nftables", "ipvs"],
)
def test_no_conversion_is_wider_than_its_field(base: BaseRules) -> None:
    # Linux 7.2 refuses them with EOPNOTSUPP.
    with empty_namespace("conversions") as namespace:
        compiled = namespace.run(["nft", "--debug=netlink", "-f", "-"], text=base.text()).stdout
    assert "lookup" in compiled
    found = [match for match in CONVERSION.finditer(compiled) if match["size"] != match["length"]]
    assert not found
