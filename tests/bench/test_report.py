import msgspec
import pytest
from pyproxy_lab.bench.figures import Spread
from pyproxy_lab.bench.measures import Measure, Run
from pyproxy_lab.bench.report import Report, as_json, as_markdown

REPORT = Report(
    "10 services x 2",
    "1 CPUs",
    {"pyproxy": ["pyproxy"], "other": ["other"]},
    [
        Run("pyproxy", 0, {Measure.UP_KERNEL: [0.001, 0.003], Measure.PEAK: [1 << 20]}),
        Run("other", 0, {Measure.UP_KERNEL: [0.02, 0.02]}),
        Run("other", 1, {Measure.UP_KERNEL: [0.12]}),
        Run("pyproxy", 1, {Measure.UP_KERNEL: [0.004], Measure.PEAK: [3 << 20]}),
    ],
)


def test_ratios_are_those_of_pairs_of_runs() -> None:
    # 0.02 by 0.002, and 0.12 by 0.004.
    assert REPORT.ratio("other", Measure.UP_KERNEL) == pytest.approx(20)
    assert REPORT.ratio("pyproxy", Measure.UP_KERNEL) is None
    assert REPORT.ratio("other", Measure.PEAK) is None


def test_the_table_has_what_was_measured() -> None:
    assert as_markdown(REPORT).splitlines() == [
        "10 services x 2; 1 CPUs",
        "",
        "| | pyproxy | other | ÷ pyproxy |",
        "| --- | --- | --- | --- |",
        "| peak memory of the process | 2 MiB (1 MiB to 3 MiB) | - |  |",
        "| endpoint up: to the kernel | 3.000 ms (1.000 ms to 4.000 ms) | "
        "20.0 ms (20.0 ms to 120.0 ms) | 20.0 |",
    ]


def test_json_has_every_figure() -> None:
    found = msgspec.json.decode(as_json(REPORT))["measures"]["endpoint_up_kernel"]
    assert found["unit"] == "seconds"
    assert found["agents"]["pyproxy"] == {
        "median": 0.003,
        "least": 0.001,
        "most": 0.004,
        "values": [0.001, 0.003, 0.004],
    }
    assert found["agents"]["other"]["ratio"] == pytest.approx(20)


@pytest.mark.parametrize(("count", "p99"), [(1, 1), (2, 2), (100, 99), (101, 100), (1_000, 990)])
def test_99_of_100_do_not_exceed_p99(count: int, p99: int) -> None:
    assert Spread(range(1, count + 1)).p99 == p99
