"""The tests of `test_every_mode` in ipvs mode, on the kernel of the virtual machine."""

from __future__ import annotations

import pytest
from pyproxy_lab import modes

from tests.inspect.test_every_mode import (
    programmed,
    test_explain_and_diff_find_an_endpoint_that_was_removed_by_hand,
    test_explain_and_diff_find_base_rules_that_were_removed_by_hand,
    test_nothing_differs_and_reading_writes_nothing,
    test_services_lists_frontends_and_endpoints,
    test_status_names_the_mode_and_its_tables,
    test_top_counts_connections,
    test_trace_gives_both_endpoints_half_of_the_connections,
    test_trace_rejects_another_port_of_a_cluster_ip,
)

__all__ = [
    "programmed",
    "test_explain_and_diff_find_an_endpoint_that_was_removed_by_hand",
    "test_explain_and_diff_find_base_rules_that_were_removed_by_hand",
    "test_nothing_differs_and_reading_writes_nothing",
    "test_services_lists_frontends_and_endpoints",
    "test_status_names_the_mode_and_its_tables",
    "test_top_counts_connections",
    "test_trace_gives_both_endpoints_half_of_the_connections",
    "test_trace_rejects_another_port_of_a_cluster_ip",
]

pytestmark = [
    pytest.mark.vm,
    pytest.mark.packets,
    pytest.mark.parametrize("mode", [modes.IPVS], ids=["ipvs"], indirect=True, scope="module"),
]
