"""What would take too long to compile is told from the schema, and what would not is let through."""

import re
from string import ascii_lowercase
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessions.schema_bounds import MAX_PATTERN, MAX_PATTERNS, MAX_SHORTEST, _Nodes, excess, shortest_match
from tests.schemas import NAMED, closed

LONG = {"const": "x" * 60_000}
PATTERNS = [{"pattern": f".*{letter}.*"} for letter in ascii_lowercase]


COSTLY = {"multipleOf": 1_000_003}


def defs(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"$defs": {name: schema}}


LOST = [
    {"$ref": "#/nowhere"},
    {"$ref": "#/x/+1", "x": [{}, COSTLY]},
    {"$ref": "#/$defs/%FF", **defs("\ufffd", COSTLY)},
    {"$ref": "#named", **defs("a", {"$anchor": "other", **COSTLY})},
    {"$ref": "#named", "$defs": {"a": {"$anchor": "named"}, "b": {"not": {"$dynamicAnchor": "named", **COSTLY}}}},
    {
        "$ref": "#/default",
        "default": {"$id": "http://a.b/c", "$ref": "#/$defs/b", **defs("b", COSTLY)},
        **defs("b", {}),
    },
    {"$ref": "#/$defs/const", **defs("const", {"$id": "http://a.b/c", **COSTLY})},
    {"$ref": "#/$defs/a", "$defs": {"a": {}}, "not": {"$id": "http://a.b/c"}},
    {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "$ref": "#/$defs/a",
        "$defs": {"a": {"id": "http://a.b/c", "$ref": "#/$defs/b", **defs("b", COSTLY)}, "b": {}},
    },
    {"$ref": "http://a.b/c", **defs("a", {"$id": "http://a.b/c", **COSTLY})},
    {"$ref": "/#/$defs/a", **defs("a", COSTLY)},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$id": "http://a.b/c", "$ref": "#/$defs/b", **defs("b", COSTLY)}, "b": {}}},
]


def chain(num_links: int) -> dict[str, Any]:
    links = {f"a{n}": {"$ref": f"#/$defs/a{n + 1}", "pattern": f".*{n}.*"} for n in range(num_links)}
    return {"$ref": "#/$defs/a0", "$defs": {**links, f"a{num_links}": {"type": "string"}}}


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"$ref": "#"}, "$ref"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "$ref"),
        ({"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]}, "$ref"),
        ({"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/anyOf/1"}, "minItems": 1}]}, "$ref"),
        *[({"type": "integer", **schema}, "$ref") for schema in LOST],
        ({"type": "integer", **defs("a b", COSTLY), "$ref": "#/$defs/a%20b"}, "multipleOf"),
        ({"type": "integer", **defs("a", {"$anchor": "named", **COSTLY}), "$ref": "#named"}, "multipleOf"),
        (
            {"type": "integer", **defs("a", {"$anchor": "b", "x": COSTLY}), "$id": "u:v", "$ref": "u:v#b/x"},
            "multipleOf",
        ),
        ({"type": "integer", **defs("a/b", COSTLY), "$ref": "#/$defs/a%7E1b"}, "multipleOf"),
        ({"type": "integer", **defs("a~1", COSTLY), "$ref": "#/$defs/a~01"}, "multipleOf"),
        ({"type": "integer", **defs("é", COSTLY), "$ref": "#/%24defs/%C3%A9"}, "multipleOf"),
        ({"type": "integer", **defs("a", {"b": COSTLY}), "$ref": "#/$defs/a%2Fb"}, "multipleOf"),
        ({"type": "integer", "x": [{}, COSTLY], "$ref": "#/x/0000000001"}, "multipleOf"),
        (
            {"type": "integer", **defs("a", COSTLY), "$id": "http://a.b/c", "$ref": "http://a.b/c#/$defs/a"},
            "multipleOf",
        ),
        ({"type": "string", "pattern": "a" * (MAX_PATTERN + 1)}, "pattern"),
        ({"type": "object", "patternProperties": {"[" * (MAX_PATTERN + 1): {}}}, "patternProperties"),
        ({"allOf": [{"multipleOf": 2**53 - n} for n in range(1, 25, 2)]}, "multipleOf"),
        ({"type": "integer", "multipleOf": 10**200 + 1}, "multipleOf"),
        ({"type": "integer", "multipleOf": 10**5000 + 1}, "multipleOf"),
        ({"type": "array", "minItems": 10**400, "items": {"$ref": "#"}}, "$ref"),
        ({"type": "array", "minItems": 10**400, "items": {"type": "number"}}, "minItems"),
        ({"const": [10**5000]}, "const"),
        ({"enum": [1, [10**5000]]}, "enum"),
        ({"type": "string", "pattern": "^(a{1000}){1000}$"}, "pattern"),
        ({"type": "string", "minLength": 10**9}, "minLength"),
        ({"type": "array", "minItems": 10**6}, "minItems"),
        (
            {"$defs": {"c": LONG}, "type": "array", "prefixItems": [{"$ref": "#/$defs/c"}] * 3, "minItems": 3},
            "minItems",
        ),
        ({"$defs": {"c": LONG}, **closed(**{name: {"$ref": "#/$defs/c"} for name in "abc"})}, "required"),
        (closed(a={"anyOf": [{"type": "null"}, {"type": "array", "items": LONG, "minItems": 3}]}), "minItems"),
        ({"type": "string", "allOf": PATTERNS}, "pattern"),
        ({"allOf": [closed(a=pattern) for pattern in PATTERNS]}, "pattern"),
        (chain(12), "pattern"),
        ({"type": "string", "allOf": [{"anyOf": [pattern, {"format": "date"}]} for pattern in PATTERNS]}, "pattern"),
        ({"type": "integer", "multipleOf": 1_000_003}, "multipleOf"),
        ({"type": "integer", "allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}, "multipleOf"),
        (closed(**{f"n{n}": {"type": "integer", "multipleOf": 9001 + 2 * n} for n in range(9)}), "multipleOf"),
    ],
)
def test_what_takes_too_long_is_told_by_its_keyword(schema: dict[str, Any], keyword: str) -> None:
    assert (excess(schema) or "").startswith(f"{keyword}: ")


@pytest.mark.parametrize(
    "schema",
    [
        *NAMED.values(),
        True,
        {},
        {"$defs": {"a": {"$anchor": "named", "$id": "http://a.b/c"}}},
        {
            "$id": "http://a.b/c",
            "$defs": {"a": True},
            "anyOf": [{"$ref": "http://a.b/c#/$defs/a"}, {"$ref": "#/$defs/a"}],
        },
        {"$ref": "#/$defs/a", **defs("a", {"const": {"$id": "x"}, "enum": [[{"$id": "x"}]], "default": {"$id": "x"}})},
        {"$ref": "#/$defs/a", **defs("a", {"id": "x"}), "$id": "u:v"},
        {"$ref": "#/$defs/a", **defs("a", True), "examples": [{"$id": "x", "$ref": "nowhere"}]},
        {"type": "object", "properties": {"$id": {"$ref": "#/$defs/$ref"}}, "$defs": {"$ref": {"type": "string"}}},
        {"type": "string", "pattern": "[" * MAX_PATTERN},
        {"multipleOf": float("nan"), "minItems": float("inf")},
        {"anyOf": PATTERNS},
        closed(**{pattern["pattern"]: pattern for pattern in PATTERNS}),
        {"allOf": [closed(a=pattern, b=other) for pattern, other in zip(PATTERNS[:8], PATTERNS[8:16], strict=True)]},
        {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": closed(**{p["pattern"]: p for p in PATTERNS})}},
        {"type": "object", "properties": {"n": {"$ref": "#"}}},
        closed(**{f"price_{n}": {"type": "number", "multipleOf": 0.01} for n in range(1000)}),
        closed(**{f"week_{n}": {"type": "integer", "multipleOf": 7} for n in range(1000)}),
        closed(**{f"field_{n}": {"type": "string"} for n in range(5000)}),
        {"type": "number", "multipleOf": 10**6},
        {"type": ["string", "null"], "pattern": "^a{100000}$", "minLength": "x"},
        {"type": "string", "maxLength": 10**9, "pattern": 7},
        {"type": "array", "items": {"type": "string", "maxLength": 10**6}, "maxItems": 10**9},
        {"type": "array", "items": [], "minItems": True, "properties": [], "required": [1], "enum": 3},
    ],
)
def test_what_does_not_is_let_through(schema: Any) -> None:
    assert excess(schema) is None


def test_a_chain_of_references_is_as_deep_as_it_likes() -> None:
    links = {f"a{n}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/a{n + 1}"}}} for n in range(3000)}
    assert excess({"$ref": "#/$defs/a0", "$defs": {**links, "a3000": {"type": "null"}}}) is None
    assert MAX_PATTERNS == 8, "each one more costs four times as much"


def nested(num_levels: int) -> dict[str, Any]:
    """Each level refers to the one around it."""
    schema: dict[str, Any] = {}
    for depth in reversed(range(num_levels)):
        around = "#" + "/properties/n" * depth
        schema = {"type": "array", "minItems": 1, "items": {"$ref": around}, "properties": {"n": schema}}
    return {"type": "object", "properties": {"n": schema}}


def test_references_into_what_is_around_them_are_told_at_any_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    look = _Nodes._shortest
    monkeypatch.setattr(_Nodes, "_shortest", lambda *asked: looked.append(0) or look(*asked))
    assert excess(nested(150)) is None
    num_levels = len(looked)
    assert excess(nested(300)) is None
    assert len(looked) - num_levels < 2.5 * num_levels, "each level is looked at a few times, however many there are"


def test_what_cannot_be_told_in_time_is_not_called_a_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sessions.schema_bounds._MAX_LOOKS", 1)
    assert "nest too deep" in (excess(nested(80)) or "")


def test_constants_and_patterns_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Any] = []
    monkeypatch.setattr("sessions.schema_bounds.shortest_match", lambda pattern: measured.append(pattern) or 1)
    monkeypatch.setattr("sessions.schema_bounds.json.dumps", lambda value, **_: measured.append(value) or "1")
    assert excess(closed(a={"const": 1}, b={"enum": [2, 3]}, c={"type": "string", "pattern": "x"})) is None
    assert sorted(map(str, measured)) == ["1", "2", "3", "x"]


@pytest.mark.parametrize("part", ["[", "[^", "\\p{", "(?", "(?P<", "{1", "[\\"])
def test_what_is_never_closed_is_read_once(part: str) -> None:
    """Read again from each of its characters, it would take hours."""
    assert shortest_match(part * 100_000) <= 2 * 100_000


KEYWORDS = [
    *("$ref", "$id", "$defs", "allOf", "anyOf", "oneOf", "type", "const", "enum", "pattern", "patternProperties"),
    *("properties", "required", "additionalProperties", "items", "prefixItems", "multipleOf"),
    *("minItems", "minLength"),
]
NUMBERS = st.sampled_from(
    [0, -1, 1, True, 1.5, 3e-320, 1e308, float("inf"), float("nan"), 2**53 - 1, 10**200 + 1, 10**400, 10**4000]
)
POINTERS = ["", "#", "#/", "#/$defs/a", "#/allOf/0", "#/%61llOf/00", "#/%FF", "#/~", "http://[", "#/items", "#/\ud800"]
TEXTS = st.sampled_from(
    [*POINTERS, "\ud800", "[[[", "a{999999}", "(((", "\\", "array", "object", "string", "number", "a"]
)
SCALARS = st.none() | NUMBERS | TEXTS


def hostile(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    parts = st.lists(inner, min_size=1, max_size=3)
    likely: dict[str, st.SearchStrategy[Any]] = {
        **{"$ref": st.sampled_from(POINTERS), "multipleOf": NUMBERS, "minItems": NUMBERS, "minLength": NUMBERS},
        **{"type": st.sampled_from(["array", "object", "string"]), "items": inner, "allOf": parts, "anyOf": parts},
        **{"const": inner, "enum": parts, "pattern": TEXTS, "properties": st.dictionaries(TEXTS, inner, max_size=3)},
    }
    any_keys = st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=4)
    return st.fixed_dictionaries({}, optional=likely) | any_keys | parts


HOSTILE = st.recursive(SCALARS, hostile, max_leaves=12)


@settings(max_examples=200)
@given(HOSTILE, st.integers(0, 20))
def test_whatever_is_asked_is_let_through_or_refused_by_name(schema: Any, num_doublings: int) -> None:
    for _ in range(num_doublings):
        schema = {"type": "array", "minItems": 10**400, "items": schema, "allOf": [schema, schema]}
    reason = excess(schema)
    assert reason is None or reason.split(": ")[0] in {*KEYWORDS}


def test_a_constant_as_deep_as_any_is_refused_or_let_through() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    assert (excess({"const": value}) or "").startswith("const: ")


@pytest.mark.parametrize(
    ("pattern", "length"),
    [
        ("^a{1000}$", 1000),
        ("(a{10}|b){3}", 3),
        ("((a{1000}){1000}){1000}", MAX_SHORTEST + 1),
        ("[a-z]{2,3}?x+", 3),
        (r"\p{L}{4}\d+", 5),
        ("a|bc|", 0),
        (r"^\d{4}-(0[1-9]|1[0-2])$", 7),
        ("(?P<x>ab)c*(?:de)?(?i)", 2),
        (r"[]a]{2}[^\]]\]", 4),
        ("(", 0),
    ],
)
def test_the_shortest_match(pattern: str, length: int) -> None:
    assert shortest_match(pattern) == length


ATOMS = st.sampled_from(["a", "bc", ".", "[xy]", r"\d", "(?:z)", ""])
TIMES = st.sampled_from(["", "", "*", "+", "?", "{2}", "{0,3}", "{3,}"])
PATTERN = st.recursive(
    ATOMS,
    lambda inner: (
        st.builds("|".join, st.lists(inner, min_size=1, max_size=3))
        | st.builds(lambda part, times: f"({part}){times}", inner, TIMES)
        | st.builds(lambda one, other: f"(?:{one}){other}", inner, inner)
    ),
)


@given(PATTERN)
def test_the_shortest_match_is_that_of_pythons_own_reading(pattern: str) -> None:
    least, _ = re._parser.parse(pattern).getwidth()  # type: ignore[attr-defined]
    assert shortest_match(pattern) == least
