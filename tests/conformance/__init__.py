"""Every case with packets, and where the cases are."""

from pathlib import Path

FOLDER = Path(__file__).with_name("cases")

SAME_IN_ALL_MODES = (
    "08-source-ranges.yaml",
    "10-terminating-and-hints.yaml",
    "11-ports-and-slices.yaml",
)
"""Files whose results are decided by the policy, and by rules that several modes share."""
