"""The figures of the fast path: medians, ratios and the table."""

import pytest

from bench.fast_path import DIRECT, ENDS, FAST, SLOW, Figures, comparisons, median, table
from bench.kube_proxy_rules import kube_proxy_rules
from tests.namespaces import empty_namespace

FIGURES = {
    ENDS: Figures(10e-6, 0.010, 100e-6),
    DIRECT: Figures(16e-6, 0.015, 120e-6),
    SLOW: Figures(20e-6, 0.020, 150e-6),
    FAST: Figures(16e-6, 0.016, 152e-6),
}


def test_medians_are_taken_of_each_figure_alone() -> None:
    runs = [Figures(1, 5, 9), Figures(2, 4, 7), Figures(3, 6, 8)]
    assert median(runs) == Figures(2, 5, 8)


def test_a_ratio_above_1_is_an_advantage_of_offload() -> None:
    found = {each.what: (round(each.value, 3), each.is_met) for each in comparisons(FIGURES)}
    assert found == {
        "round trips, offload by none": (1.25, True),
        "round trips, offload by pod directly": (1.0, True),
        "bulk, offload by none": (1.25, True),
        "bulk, offload by pod directly": (0.938, False),
        "new connections, offload by none": (0.987, True),
    }


def test_the_table_has_rates_and_what_the_way_adds_to_the_ends() -> None:
    head, *lines = table(FIGURES)
    assert len(lines) == len(FIGURES)
    width = len(head)
    assert {len(line) for line in lines} == {width}
    assert lines[3].split()[-6:] == ["62,500", "16,000", "6,000", "1,311", "6,579", "152,000"]


@pytest.mark.kernel
def test_the_kernel_accepts_kube_proxys_rules() -> None:
    rules = kube_proxy_rules("10.96.0.1", "10.244.0.2", 80)
    with empty_namespace("kube-proxy") as namespace:
        namespace.run(["nft", "-f", "-"], text=rules)
        listed = namespace.run(["nft", "list", "map", "ip", "kube-proxy", "service-ips"]).stdout
    assert "10.96.0.1 . tcp . 80 : goto service" in listed
