from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproxy_lab.apiserver import patch, strategic
from pyproxy_lab.apiserver.status import ApiError

KEYS = st.sampled_from(["a", "b", "c/d", "e~f"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text("xy", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(KEYS, JSON, max_size=3)


# The examples of RFC 7386, appendix A.
@pytest.mark.parametrize(
    ("target", "change", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patches(target: Any, change: Any, result: Any) -> None:
    assert patch.merge(target, change) == result


@given(OBJECTS, OBJECTS)
def test_a_merge_patch_applied_twice_is_applied_once(target: Any, change: Any) -> None:
    before = copy.deepcopy(target), copy.deepcopy(change)
    once = patch.merge(target, change)
    assert patch.merge(once, change) == once
    assert (target, change) == before


@pytest.mark.parametrize(
    ("operations", "result"),
    [
        ([{"op": "add", "path": "/b", "value": 1}], {"a": [1, 2], "b": 1}),
        ([{"op": "add", "path": "/a/1", "value": 9}], {"a": [1, 9, 2]}),
        ([{"op": "add", "path": "/a/-", "value": 9}], {"a": [1, 2, 9]}),
        ([{"op": "replace", "path": "/a/0", "value": 9}], {"a": [9, 2]}),
        ([{"op": "remove", "path": "/a/0"}], {"a": [2]}),
        ([{"op": "move", "from": "/a/0", "path": "/b"}], {"a": [2], "b": 1}),
        ([{"op": "copy", "from": "/a", "path": "/b"}], {"a": [1, 2], "b": [1, 2]}),
        ([{"op": "test", "path": "/a/0", "value": 1}], {"a": [1, 2]}),
        ([{"op": "add", "path": "/x~1y~0z", "value": 1}], {"a": [1, 2], "x/y~z": 1}),
    ],
)
def test_json_patches(operations: Any, result: Any) -> None:
    assert patch.apply_operations({"a": [1, 2]}, operations) == result


@pytest.mark.parametrize(
    ("operations", "code"),
    [
        ([{"op": "remove", "path": "/missing"}], 422),
        ([{"op": "replace", "path": "/missing", "value": 1}], 422),
        ([{"op": "add", "path": "/a/5", "value": 1}], 422),
        ([{"op": "add", "path": "/a/01", "value": 1}], 422),
        ([{"op": "test", "path": "/a/0", "value": 2}], 422),
        ([{"op": "jump", "path": "/a"}], 422),
        ([{"op": "add", "path": "a", "value": 1}], 422),
        ({"op": "add"}, 400),
        ([{"op": "add"}], 400),
    ],
)
def test_bad_json_patches_are_refused(operations: Any, code: int) -> None:
    document = {"a": [1, 2]}
    with pytest.raises(ApiError) as refused:
        patch.apply_operations(document, operations)
    assert refused.value.code == code
    assert document == {"a": [1, 2]}


@given(OBJECTS, KEYS, JSON)
def test_adding_then_removing_leaves_nothing(document: Any, key: str, value: Any) -> None:
    pointer = "/" + key.replace("~", "~0").replace("/", "~1")
    added = patch.apply_operations(document, [{"op": "add", "path": pointer, "value": value}])
    assert added[key] == value
    removed = patch.apply_operations(added, [{"op": "remove", "path": pointer}])
    assert removed == {k: v for k, v in document.items() if k != key}


SERVICE: dict[str, Any] = {
    "metadata": {"labels": {"a": "1"}, "finalizers": ["x/1", "x/2"]},
    "spec": {
        "ports": [{"port": 80, "name": "http", "nodePort": 30080}, {"port": 443, "name": "https"}],
        "externalIPs": ["192.0.2.1", "192.0.2.2"],
        "selector": {"app": "web"},
    },
}
POD = {"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 1}]}, {"name": "b"}]}}


@pytest.mark.parametrize(
    ("target", "change", "path", "result"),
    [
        (
            SERVICE,
            {"spec": {"ports": [{"port": 80, "targetPort": 8080}]}},
            ("spec", "ports"),
            [
                {"port": 80, "name": "http", "nodePort": 30080, "targetPort": 8080},
                {"port": 443, "name": "https"},
            ],
        ),
        (
            SERVICE,
            {
                "spec": {
                    "$setElementOrder/ports": [{"port": 443}, {"port": 81}],
                    "ports": [{"port": 81}, {"port": 80, "$patch": "delete"}],
                }
            },
            ("spec", "ports"),
            [{"port": 443, "name": "https"}, {"port": 81}],
        ),
        (
            SERVICE,
            {"spec": {"ports": [{"$patch": "replace"}, {"port": 1}]}},
            ("spec", "ports"),
            [{"port": 1}],
        ),
        (SERVICE, {"spec": {"externalIPs": ["192.0.2.9"]}}, ("spec", "externalIPs"), ["192.0.2.9"]),
        (
            SERVICE,
            {"spec": {"selector": {"app": None, "b": "2"}}},
            ("spec", "selector"),
            {"b": "2"},
        ),
        (
            SERVICE,
            {"spec": {"selector": {"$patch": "replace", "b": "2"}}},
            ("spec", "selector"),
            {"b": "2"},
        ),
        (
            SERVICE,
            {"metadata": {"$deleteFromPrimitiveList/finalizers": ["x/1"], "finalizers": ["x/3"]}},
            ("metadata", "finalizers"),
            ["x/2", "x/3"],
        ),
        (
            SERVICE,
            {"spec": {"$retainKeys": ["ports"], "ports": []}},
            ("spec",),
            {"ports": SERVICE["spec"]["ports"]},
        ),
        (
            POD,
            {"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 2}]}]}},
            ("spec", "containers"),
            [{"name": "a", "ports": [{"containerPort": 1}, {"containerPort": 2}]}, {"name": "b"}],
        ),
    ],
)
def test_strategic_merge_patches(target: Any, change: Any, path: Any, result: Any) -> None:
    before = copy.deepcopy(target)
    found = strategic.apply(target, change)
    for part in path:
        found = found[part]
    assert found == result
    assert target == before


@pytest.mark.parametrize(
    "change", [{"spec": {"ports": [{"name": "x"}]}}, {"spec": {"$patch": "explode"}}, []]
)
def test_senseless_strategic_patches_are_refused(change: Any) -> None:
    with pytest.raises(ApiError) as refused:
        strategic.apply(SERVICE, change)
    assert refused.value.code == 400
