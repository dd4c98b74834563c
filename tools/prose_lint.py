"""Check the project's prose: Markdown, docstrings, comments, help texts, log lines and errors.

    python tools/prose_lint.py [PATH ...]

Prints `PATH:LINE: RULE: EXCERPT` for each finding and exits with status 1 if there are any. The
rules are those of CONTRIBUTING.md that a regular expression can see. The default paths are
README.md, CONTRIBUTING.md, SECURITY.md, docs, deploy, pyproxy, lab, bench, tests and tools.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

PATHS = (
    "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md",
    "docs", "deploy", "pyproxy", "lab", "bench", "tests", "tools",
)  # fmt: skip
LONGEST = 35
"""Words of a sentence at most."""

_AFTER_FOR = (
    "it|there|they|he|she|we|you|that|this|these|those|what|who|which|each|every|no|none|a|an|the|"
    "its|their|his|some|most|many|all|one|in|only|without|otherwise|else|nothing|both|neither"
)
RULES = (
    ("causal 'for': write because, since, or a new sentence", rf"[,;:] for (?:{_AFTER_FOR})\b"),
    (
        "name the actor",
        r"\b(?i:whoever|whomever|whosever|whosoever|nobody|somebody|everybody)\b",
    ),
    (
        "begin with the subject, not with a clause",
        r"^(?:What|Who|Whatever|Whose|Whom) (?![^.!]*\?)",
    ),
    ("say Return, Print, Write or Raise", r"^(?:Give|Tell|Say) "),
    (
        "private word: CONTRIBUTING.md has the field's",
        r"\b(?i:ailments?|ailing|amiss|leavings|farewell|hearsay|insiders?|outsiders?|agendas?|"
        r"set aside|sets aside|setting aside|is told of|are told of|tells of|in vain|"
        r"fences? off|patrols?|forests?|the house|sister)\b",
    ),
    (
        "a program does not hear, tend or speak",
        r"\b(?i:hears|is heard|was heard|are heard|is tended|tends to it|has its say|have a say|"
        r"has a say|speaks? of|to speak of)\b",
    ),
)  # fmt: skip
_COMPILED = tuple((name, re.compile(pattern)) for name, pattern in RULES)
_LOGGING = {"debug", "info", "warning", "error", "exception", "critical", "log"}
_TEXT_ARGUMENTS = {"help", "description", "epilog"}
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[A-Z0-9`\"'(\[*])")
_NOT_PROSE = re.compile(r"^\s*(?:#|\||```|~~~|>|\$|!\[|<)")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|vs|cf|No|pp?)\.\s*$")


class Passage(NamedTuple):
    """One run of prose and the line that it begins on."""

    line: int
    text: str


class Finding(NamedTuple):
    """A rule that a sentence breaks."""

    line: int
    rule: str
    excerpt: str


def markdown(text: str) -> Iterator[Passage]:
    """Yield the paragraphs and list items of a page, without code, tables and headings."""
    block: list[str] = []
    began, fenced = 1, False
    for number, line in enumerate(text.splitlines(), 1):
        fence = line.lstrip().startswith(("```", "~~~"))
        fenced ^= fence
        indented = line.startswith("    ") and not block
        item = re.match(r"\s*(?:[-*+]|\d+\.)\s", line)
        if fence or fenced or indented or not line.strip() or _NOT_PROSE.match(line) or item:
            yield from _joined(began, block)
            block = []
            if fence or fenced or indented or not item:
                continue
        if not block:
            began = number
        block.append(line)
    yield from _joined(began, block)


def python(text: str) -> Iterator[Passage]:
    """Yield the comments, docstrings, help texts, log lines and error messages of a module."""
    yield from _comments(text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                yield from _docstring(node.value.lineno, node.value.value)
        elif isinstance(node, ast.Call):
            for argument in _texts_of(node):
                if text_of := _constant(argument):
                    yield Passage(argument.lineno, text_of)


def findings(passage: Passage) -> Iterator[Finding]:
    """Yield what is wrong with the sentences of one passage."""
    for sentence in sentences(passage.text):
        for name, pattern in _COMPILED:
            if found := pattern.search(sentence):
                around = sentence[max(0, found.start() - 30) : found.end() + 40]
                yield Finding(passage.line, name, around)
        words = sum(any(map(str.isalnum, word)) for word in sentence.split())
        if words > LONGEST:
            yield Finding(passage.line, f"{words} words in a sentence", sentence[:70])


def sentences(text: str) -> Iterator[str]:
    """Split prose at the ends of sentences; an abbreviation's full stop is none."""
    held = ""
    for part in _SENTENCE.split(" ".join(text.split())):
        held = f"{held} {part}".strip()
        if not _ABBREVIATION.search(held):
            yield held
            held = ""
    if held:
        yield held


def files(paths: Iterable[str]) -> Iterator[Path]:
    """Find the pages and modules below some paths, without those of other projects."""
    for each in map(Path, paths):
        found = [each] if each.is_file() else sorted(each.rglob("*")) if each.is_dir() else []
        for path in found:
            if path.suffix in {".md", ".py"} and not {".venv", "build"} & set(path.parts):
                yield path


def main(arguments: Sequence[str]) -> int:
    """Check the paths given, or all; 1 where something was found."""
    count = 0
    for path in files(arguments or PATHS):
        text = path.read_text()
        for passage in (python if path.suffix == ".py" else markdown)(text):
            for found in findings(passage):
                count += 1
                print(f"{path}:{found.line}: {found.rule}: {found.excerpt}")
    if count:
        print(f"{count} findings", file=sys.stderr)
    return 1 if count else 0


def _joined(line: int, block: Sequence[str]) -> Iterator[Passage]:
    if block:
        yield Passage(line, re.sub(r"^\s*(?:[-*+]|\d+\.)\s+", "", " ".join(block)))


def _docstring(line: int, text: str) -> Iterator[Passage]:
    began, block = line, list[str]()
    for number, each in enumerate(text.splitlines(), line):
        # An indented block below a text is an example: commands or a table.
        if not each.strip() or re.match(r"\s{8,}\S", each) or re.match(r"\s*(?:\||\$)", each):
            yield from _joined(began, block)
            block = []
            continue
        if not block:
            began = number
        block.append(each)
    yield from _joined(began, block)


def _comments(text: str) -> Iterator[Passage]:
    block: list[str] = []
    began = last = -1
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, comment = token.start[0], token.string.lstrip("#! ")
        if re.match(r"noqa|type:|fmt:|pragma", comment):
            continue
        if line != last + 1 and block:
            yield from _joined(began, block)
            block = []
        if not block:
            began = line
        block.append(comment)
        last = line
    yield from _joined(began, block)


def _texts_of(call: ast.Call) -> Iterator[ast.expr]:
    called = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    name = called or (call.func.id if isinstance(call.func, ast.Name) else "")
    if called in _LOGGING or name.endswith("Error") or name in {"Problem", "Counter", "Gauge"}:
        yield from call.args
    for keyword in call.keywords:
        if keyword.arg in _TEXT_ARGUMENTS:
            yield keyword.value


def _constant(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_constant(each) or "X" for each in values)
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
