"""The generated tables of docs/reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyproxy import errors
from pyproxy.errors import ProblemReason
from pyproxy.model.config_problems import ConfigTopic
from tests.docs.pages import DOCS, ROOT
from tools import reference

GENERATED = {
    name: path
    for path in sorted((ROOT / reference.FOLDER).glob("*.md"))
    for name in reference.GENERATORS
    if f"<!-- generated: {name} -->" in path.read_text()
}


@pytest.mark.parametrize("page", sorted({*GENERATED.values()}), ids=lambda page: page.name)
def test_a_page_is_up_to_date(page: Path) -> None:
    assert page.read_text() == reference.generate(page.read_text()), "run: make generate"


def test_each_table_is_in_a_page() -> None:
    assert GENERATED.keys() == reference.GENERATORS.keys()


def test_only_the_text_between_the_comments_is_written() -> None:
    page = "a\n<!-- generated: events -->\nold\n<!-- end of generated text -->\nb\n"
    written = reference.generate(page)
    assert written.startswith("a\n<!-- generated: events -->\n\n| reason |")
    assert written.endswith("|\n\n<!-- end of generated text -->\nb\n")
    assert "old" not in written


def test_every_reason_has_a_meaning() -> None:
    meanings = reference.member_docstrings(errors, "ProblemReason")
    assert meanings.keys() == ProblemReason.__members__.keys()


def test_the_mistakes_in_the_configuration_are_all_explained() -> None:
    rows = (DOCS / "tasks" / "debugging.md").read_text().splitlines()
    explained = [row.split("`")[1] for row in rows if row.startswith("| `")]
    assert {topic.value for topic in ConfigTopic} <= {*explained}
