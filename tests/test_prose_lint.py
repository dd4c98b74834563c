"""The prose lint: each rule on sentences that break it, and on plain ones that must pass."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parent.parent / "tools/prose_lint.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prose_lint", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


lint = _load()


def rules(text: str) -> list[str]:
    return [found.rule for found in lint.findings(lint.Passage(1, text))]


@pytest.mark.parametrize(
    ("sentence", "rule"),
    [
        ("The commit is late, for the kernel walks all maps.", "causal 'for'"),
        ("Nobody reads it.", "name the actor"),
        ("Whoever writes to the table is named.", "name the actor"),
        ("What the kernel holds is read back.", "begin with the subject"),
        ("Give the addresses of the node.", "say Return"),
        ("The Service is set aside.", "private word"),
        ("The agent hears of the change.", "a program does not hear"),
        (f"The agent writes {'one more ' * 20}row.", "44 words in a sentence"),
    ],
)
def test_a_sentence_that_breaks_a_rule_is_found(sentence: str, rule: str) -> None:
    (found,) = rules(sentence)
    assert found.startswith(rule)


@pytest.mark.parametrize(
    "sentence",
    [
        "The commit is late because the kernel walks all maps.",
        "The agent waits for the kernel, and for nothing else.",
        "What does the kernel hold?",
        "Return the addresses that this node may use.",
        "The kernel refuses the message (EINVAL, ERANGE, E2BIG etc.) as a whole.",
        f"{'The row is written. ' * 20}",
    ],
)
def test_a_plain_sentence_passes(sentence: str) -> None:
    assert rules(sentence) == []


def test_only_prose_of_a_page_is_read() -> None:
    page = (
        "# Nobody\n\n| Nobody |\n\n    nobody types this\n\n"
        "```\nnobody\n```\n\nOne\nline.\n\n- item\n"
    )
    assert list(lint.markdown(page)) == [(11, "One line."), (14, "item")]


def test_docstrings_comments_help_logs_and_errors_of_a_module_are_read() -> None:
    module = '''"""Doc."""
# One
# comment.
parser.add_argument("--x", help="Help text")
log.warning("cannot set %s", x)
raise UsageError(f"{x}: bad")
y = "nobody reads this"
'''
    assert sorted(lint.python(module)) == [
        (1, "Doc."),
        (2, "One comment."),
        (4, "Help text"),
        (5, "cannot set %s"),
        (6, "X: bad"),
    ]


def test_findings_are_printed_with_their_place_and_fail_the_check(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Fine.\n\nNobody knows.\n")
    done = subprocess.run([sys.executable, TOOL, page], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "1 findings\n")
    assert done.stdout == f"{page}:3: name the actor: Nobody knows.\n"
