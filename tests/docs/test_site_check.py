"""The check of a built site."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import site_check


@pytest.mark.parametrize(
    ("body", "mistakes"),
    [
        ('<a href="other.html#here">', []),
        ('<a href="#top">', []),
        ('<a href="folder/">', []),
        ('<a href="https://example.com/x#y"><a href="mailto:a@example.com">', []),
        ('<script src="own.js"></script><img src="data:,x">', []),
        ('<a href="gone.html">', ["gone.html: there is no such file"]),
        ('<a href="other.html#gone">', ["other.html#gone: there is no such anchor"]),
        ('<script src="//cdn.example/a.js"></script>', ["loads //cdn.example/a.js"]),
        ('<link rel="stylesheet" href="https://f.example">', ["loads https://f.example"]),
        ('<img src="https://badge.example/b.svg">', ["loads https://badge.example/b.svg"]),
    ],
)
def test_each_mistake_is_one_line(tmp_path: Path, body: str, mistakes: list[str]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").write_text("<p>")
    (tmp_path / "other.html").write_text('<h1 id="here">')
    page = tmp_path / "page.html"
    page.write_text(f'<h1 id="top">{body}')
    assert list(site_check.mistakes(tmp_path)) == [f"{page}: {each}" for each in mistakes]


def test_fonts_of_another_host_are_found(tmp_path: Path) -> None:
    style = tmp_path / "a.css"
    style.write_text("@import url(https://fonts.example/a.css);")
    (tmp_path / "b.css").write_text("a {background: url(data:image/svg+xml,x) url(../b.svg)}")
    assert list(site_check.mistakes(tmp_path)) == [f"{style}: loads https://fonts.example/a.css"]
