"""What is said in other words means the same: held to the jsonschema package."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from sessions.json_schema import exact
from tests.schemas import closed

CAT, DOG = closed(kind={"const": "cat"}), closed(kind={"const": "dog"}, name={"type": "string"})
OPEN_CAT: Any = {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"]}
DEFS = {"$defs": {"cat": CAT, "dog": DOG, "loop": {"anyOf": [{"$ref": "#/$defs/loop"}, {"$ref": "#/$defs/cat"}]}}}


@pytest.mark.parametrize(
    "branches",
    [
        [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
        [OPEN_CAT, {**OPEN_CAT, "properties": {"kind": {"enum": ["dog", 1]}}}],
        [closed(a={}), closed(b={})],
        [{"anyOf": [CAT, {"type": "null"}]}, {"allOf": [DOG]}],
        [{"type": ["integer", "null"], "maximum": 3}, {"type": "number", "exclusiveMinimum": 3}],
        [{"type": "string", "maxLength": 2}, {"type": "string", "minLength": 3}],
        [{"const": 1}, {"const": True}, {"const": [1]}, {"const": {"a": 1}}, {"const": {"a": 2}}],
        [{"type": "array", "maxItems": 1}, {"type": "array", "minItems": 2}],
    ],
)
def test_branches_that_exclude_each_other_are_any_of_them(branches: list[Any]) -> None:
    assert exact({**DEFS, "oneOf": branches}) == {**DEFS, "anyOf": branches}
    inner = {**DEFS, "properties": {"oneOf": {"oneOf": branches, "anyOf": [{}]}}}
    assert exact(inner)["properties"] == {"oneOf": {"anyOf": [{}], "allOf": [{"anyOf": branches}]}}


@pytest.mark.parametrize(
    "branches",
    [
        [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/loop"}],
        [{"$ref": "elsewhere"}, {"$ref": "#/$defs/none"}],
        [{"type": "integer"}, {"type": "number"}],
        [{"const": 1}, {"const": 1.0}],
        [{"required": ["a"]}, {"required": ["b"]}],
        [OPEN_CAT, {"properties": {"kind": {"const": "dog"}}}],
        [{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 3}],
        [{"type": "object", "required": ["a"]}, {"patternProperties": {"a": {}}, "additionalProperties": False}],
        [{"pattern": "a"}, {"pattern": "b"}],
        [{"enum": [1, 2]}] * 10_000,
    ],
)
def test_branches_that_may_not_are_left_as_they_are(branches: list[Any]) -> None:
    assert exact({**DEFS, "oneOf": branches}) == {**DEFS, "oneOf": branches}


def test_items_that_cannot_be_two_are_unique() -> None:
    assert exact({"uniqueItems": True, "maxItems": 1}) == {"maxItems": 1}
    assert exact({"uniqueItems": False}) == {}
    assert exact({"uniqueItems": True, "maxItems": 2}) == {"uniqueItems": True, "maxItems": 2}
    assert exact({"const": {"uniqueItems": False}, "enum": [{"oneOf": []}]}) == {
        "const": {"uniqueItems": False},
        "enum": [{"oneOf": []}],
    }


def test_what_nests_deep_and_what_is_wide_is_soon_given_up() -> None:
    deep: Any = {"uniqueItems": False}
    for _ in range(5000):
        deep = {"items": deep}
    assert exact(deep) is deep
    wide = {"oneOf": [{"anyOf": [{"type": "object"}] * 50}] * 50}
    assert exact(wide) == wide


def values() -> Iterator[Any]:
    small = [None, True, False, 0, 1, 2, 1.5, "", "a", "bcd", [], [1], ["a", 2]]
    yield from small
    yield from ({"a": value} for value in small)
    yield from ({"a": one, "b": other} for one, other in product(small[:5], small[3:8]))
    yield {}


VALUES = list(values())
LEAVES = st.sampled_from(
    [True, False, {}, {"type": "null"}, {"type": "integer"}, {"type": ["string", "number"]}, {"const": 1},
     {"const": True}, {"enum": ["a", None]}, {"type": "string", "minLength": 2}, {"maxLength": 1}, {"minimum": 1},
     {"exclusiveMaximum": 1}, {"type": "number", "maximum": 1}, {"type": "array", "maxItems": 1},
     {"type": "array", "minItems": 2}]
)  # fmt: skip
OBJECTS = st.fixed_dictionaries(
    {"properties": st.dictionaries(st.sampled_from("ab"), LEAVES, max_size=2)},
    optional={
        "type": st.just("object"),
        "required": st.sampled_from([["a"], ["b"], ["a", "b"]]),
        "additionalProperties": LEAVES,
        "patternProperties": st.just({"a": {}}),
        "maxProperties": st.just(1),
    },
)
SCHEMAS = st.recursive(
    LEAVES | OBJECTS,
    lambda inner: st.dictionaries(
        st.sampled_from(["anyOf", "allOf"]), st.lists(inner, min_size=1, max_size=2), min_size=1
    ),
    max_leaves=4,
)


@settings(max_examples=150)
@given(SCHEMAS, SCHEMAS, LEAVES)
def test_no_value_matches_two_that_are_told_apart(one: Any, other: Any, around: Any) -> None:
    around = around if isinstance(around, dict) else {}
    if "anyOf" in exact({**around, "oneOf": [one, other]}):
        validators = [Draft202012Validator(schema) for schema in (one, other, around)]
        assert not [value for value in VALUES if all(validator.is_valid(value) for validator in validators)]
