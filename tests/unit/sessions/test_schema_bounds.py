"""What would take too long to compile is told from the schema, and what would not is let through."""

import re
from string import ascii_lowercase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.schema_bounds import MAX_PATTERNS, MAX_SHORTEST, excess, shortest_match
from tests.schemas import NAMED, closed

LONG = {"const": "x" * 60_000}
PATTERNS = [{"pattern": f".*{letter}.*"} for letter in ascii_lowercase]


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
        {"$ref": "#named", "$defs": {"a": {"$anchor": "named"}}},
        {"$ref": "#/nowhere"},
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
