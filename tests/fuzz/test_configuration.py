"""Parsing of any flags raises only UsageError."""

from __future__ import annotations

import contextlib
import io

from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.config import command_line
from pyproxy.config.command_line import Parser
from pyproxy.config.settings import Settings
from pyproxy.errors import UsageError
from tests.examples import examples
from tests.fuzz.objects import HOSTILE


def parser() -> Parser:
    made = Parser("pyproxy")
    command_line.add_flags(made)
    return made


FLAGS = sorted(option for action in parser()._actions for option in action.option_strings)
VALUES = [
    "", "0", "-1", "99999999999999999999", "1e9", "nan", "inf", "1h", "1h1", "-5s", "0x10", "true",
    "TRUE", "maybe", "10.0.0.0/8", "10.0.0.0/33", "fd00::/129", "10.0.0.1,", ",", "localhost",
    "primary", "[::1]:10256", "127.0.0.1:70000", ":0", "127.0.0.1", "::1:1", "nftables", "/nowhere",
    "none", "a=b", "1.5", "\u0663",
]  # fmt: skip
values = st.one_of(st.sampled_from(VALUES), st.sampled_from(HOSTILE), st.text(max_size=12))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(FLAGS), values).map("=".join),
            st.sampled_from(FLAGS),
            values,
        ),
        max_size=4,
    )
)
@settings(max_examples=examples(300), deadline=None)
def test_flags(arguments: list[str]) -> None:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            words = list(command_line.go_style(arguments))
            namespace, unknown = parser().parse_known_args(words)
            if unknown:
                command_line.refuse_unknown(unknown[0])
            found = command_line.settings(namespace)
            "; ".join(found.remarks)
    except UsageError as error:
        assert str(error)  # noqa: PT017
    except SystemExit as end:
        assert end.code == 0, "only --help and --version end like this"  # noqa: PT017
    else:
        assert isinstance(found, Settings)
