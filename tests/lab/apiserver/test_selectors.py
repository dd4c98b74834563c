from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproxy_lab.apiserver.selectors import Selector, parse_fields, parse_labels
from pyproxy_lab.apiserver.status import ApiError
from pyproxy_lab.apiserver.store import Stored

KNOWN = frozenset({"metadata.name", "metadata.namespace", "spec.nodeName"})
LABELS = {"app": "web", "tier": "front", "weight": "7", "empty": "", "example.com/team": "a.b"}
VALUES = st.from_regex(r"[a-z0-9]([a-z0-9_.-]{0,5}[a-z0-9])?", fullmatch=True)
LABEL_SETS = st.dictionaries(VALUES, VALUES, max_size=4)


def stored(labels: dict[str, str], **fields: str) -> Stored:
    return Stored("/ns/x", "ns", "x", "uid", 7, labels, fields, b"{}")


def matches(text: str, labels: dict[str, str]) -> bool:
    return Selector(labels=parse_labels(text)).matches(stored(labels))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("app", True),
        ("!app", False),
        ("! app", False),
        ("!other", True),
        ("app=web", True),
        ("app==web", True),
        ("app = web , tier=front", True),
        ("app=web,tier=back", False),
        ("app!=web", False),
        ("other!=web", True),
        ("app in (web,db)", True),
        ("app in ( db , web )", True),
        ("app in (db)", False),
        ("app notin (web)", False),
        ("other notin (web)", True),
        ("other in (web)", False),
        ("empty=", True),
        ("empty in ()", True),
        ("other=", False),
        ("app=", False),
        ("weight>5", True),
        ("weight > 7", False),
        ("weight<8", True),
        ("app>5", False),
        ("example.com/team=a.b", True),
        ("!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name", True),
    ],
)
def test_label_selectors(text: str, expected: bool) -> None:
    assert matches(text, LABELS) is expected


@pytest.mark.parametrize(
    "text",
    ["app in web", "app in (a", "app,", "=web", "-app", "app=web db", "a b", "app=-x", "!", "a>x"],
)
def test_bad_label_selectors_are_refused(text: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_labels(text)
    assert refused.value.code == 400


@given(LABEL_SETS, VALUES, VALUES)
def test_each_operator_has_its_opposite(labels: dict[str, str], key: str, value: str) -> None:
    for one, other in (
        (f"{key}={value}", f"{key}!={value}"),
        (f"{key} in ({value})", f"{key} notin ({value})"),
        (key, f"!{key}"),
    ):
        assert matches(one, labels) is not matches(other, labels)


@given(LABEL_SETS)
def test_an_object_is_selected_by_its_own_labels(labels: dict[str, str]) -> None:
    assert matches(",".join(f"{key}={value}" for key, value in labels.items()), labels)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("metadata.name=x", True),
        ("metadata.name==x,metadata.namespace=ns", True),
        ("metadata.name!=x", False),
        ("metadata.namespace=other", False),
        ("spec.nodeName=", True),
        ("spec.nodeName!=", False),
    ],
)
def test_field_selectors(text: str, expected: bool) -> None:
    selector = Selector(fields=parse_fields(text, KNOWN))
    assert selector.matches(stored({})) is expected


@pytest.mark.parametrize("text", ["spec.other=x", "metadata.name"])
def test_bad_field_selectors_are_refused(text: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_fields(text, KNOWN)
    assert refused.value.code == 400
