"""Every case with packets, and where the cases are."""

from pathlib import Path

FOLDER = Path(__file__).with_name("cases")
