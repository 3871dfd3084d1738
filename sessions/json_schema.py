"""JSON Schema: what llguidance does not compile, said in words that it does, where that means exactly the same. Pure.

    oneOf whose branches exclude each other     anyOf
    uniqueItems where no two items can be       nothing

llguidance sees that branches exclude each other only where it finds a type or a constant in the branches themselves;
here it is also found behind references, in required members, and in bounds.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import inf
from typing import Any, Final

Schema = Mapping[str, Any]

REWRITTEN: Final = ("oneOf", "uniqueItems")
"""A schema without these keywords stays as it is."""

_TYPES: Final = frozenset({"null", "boolean", "number", "string", "array", "object"})
_IN_LISTS: Final = ("anyOf", "allOf", "oneOf", "prefixItems")
_IN_MAPS: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SINGLE: Final = ("items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains")
_BOUNDS: Final = {
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems"),
    "object": ("minProperties", "maxProperties"),
}
_MAX_DEPTH: Final = 8
"""Of what is looked into to tell two branches apart. References may lead round in a circle."""
_MAX_COMPARISONS: Final = 20_000
"""Of one schema: some 50 ms."""


def exact(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema of the same values. As it is, if it nests too deep to be looked into."""
    try:
        rewritten: dict[str, Any] = _rewritten(schema, _Apart(schema))
    except RecursionError:
        return schema
    return rewritten


def _rewritten(schema: Any, apart: "_Apart") -> Any:
    if not isinstance(schema, dict):
        return schema
    made = {key: _rewritten_below(key, value, apart) for key, value in schema.items()}
    if "uniqueItems" in made and (made["uniqueItems"] is False or _number(made, "maxItems", 2) < 2):
        del made["uniqueItems"]
    branches = made.get("oneOf")
    if isinstance(branches, list) and apart.all(branches, _types(made)):
        del made["oneOf"]
        if "anyOf" in made:
            made["allOf"] = [*made.get("allOf", ()), {"anyOf": branches}]
        else:
            made["anyOf"] = branches
    return made


def _rewritten_below(key: str, value: Any, apart: "_Apart") -> Any:
    if key in _IN_LISTS and isinstance(value, list):
        return [_rewritten(part, apart) for part in value]
    if key in _IN_MAPS and isinstance(value, dict):
        return {name: _rewritten(part, apart) for name, part in value.items()}
    return _rewritten(value, apart) if key in _SINGLE else value


class _Apart:
    """Says of two schemas that no value, of these kinds, matches both. False where that is not plain, or took too long
    to see."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._num_left = _MAX_COMPARISONS

    def all(self, branches: Sequence[Any], kinds: frozenset[str]) -> bool:
        return all(self(one, other, kinds) for one, other in combinations(branches, 2))

    def __call__(self, one: Any, other: Any, kinds: frozenset[str], depth: int = _MAX_DEPTH) -> bool:
        self._num_left -= 1
        if one is False or other is False:
            return True
        if not (isinstance(one, dict) and isinstance(other, dict)) or not depth or self._num_left < 0:
            return False
        if any(self._is_behind(a, b, kinds, depth - 1) for a, b in ((one, other), (other, one))):
            return True
        values, others = _values(one), _values(other)
        if values is not None and others is not None:
            return not any(_same(a, b) for a in values for b in others)
        return all(self._by_type(kind, one, other, depth - 1) for kind in kinds & _types(one) & _types(other))

    def _is_behind(self, schema: Schema, other: Schema, kinds: frozenset[str], depth: int) -> bool:
        """Is what `schema` refers to, or consists of, apart from `other`?"""
        reference = schema.get("$ref")
        if isinstance(reference, str) and self(self._target(reference), other, kinds, depth):
            return True
        if any(self(part, other, kinds, depth) for part in _list(schema, "allOf")):
            return True
        return any(
            bool(parts := _list(schema, key)) and all(self(part, other, kinds, depth) for part in parts)
            for key in ("anyOf", "oneOf")
        )

    def _by_type(self, kind: str, one: Schema, other: Schema, depth: int) -> bool:
        """Are they, for values of this type?"""
        if kind == "number":
            return _is_above(one, other) or _is_above(other, one)
        if kind not in _BOUNDS:
            return False
        least, most = _BOUNDS[kind]
        if any(_number(a, least, 0) > _number(b, most, inf) for a, b in ((one, other), (other, one))):
            return True
        return kind == "object" and self._by_members(one, other, depth)

    def _by_members(self, one: Schema, other: Schema, depth: int) -> bool:
        """Has one a member that the other must not have, or not so?"""
        for a, b in ((one, other), (other, one)):
            for name in _list(a, "required"):
                mine, its = (_member(schema, name) for schema in (a, b))
                if its is False or (name in _list(b, "required") and self(mine, its, _TYPES, depth)):
                    return True
        return False

    def _target(self, reference: str) -> Any:
        """What a pointer into the schema leads to; True where it leads elsewhere."""
        at: Any = self._root
        if reference != "#" and not reference.startswith("#/"):
            return True
        for part in reference[1:].split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            at = at.get(name, True) if isinstance(at, dict) else True
        return at


def _types(schema: Schema) -> frozenset[str]:
    """Of the values that match. An integer is a number."""
    declared = schema.get("type")
    names = [declared] if isinstance(declared, str) else declared
    kinds = _TYPES if not isinstance(names, list) else {"number" if name == "integer" else name for name in names}
    values = _values(schema)
    return frozenset(kinds & _TYPES if values is None else kinds & {_type(value) for value in values})


def _values(schema: Schema) -> list[Any] | None:
    """All that can match; None where that is not said."""
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _type(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _same(one: Any, other: Any) -> bool:
    """As JSON has it: 1 is 1.0, and not true."""
    if _type(one) != _type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    return bool(one == other)


def _member(schema: Schema, name: str) -> Any:
    """What the schema wants of the member."""
    properties = schema.get("properties")
    if isinstance(properties, dict) and name in properties:
        return properties[name]
    return True if schema.get("patternProperties") else schema.get("additionalProperties", True)


def _is_above(one: Schema, other: Schema) -> bool:
    least, most = _number(one, "minimum", -inf), _number(other, "maximum", inf)
    past, below = _number(one, "exclusiveMinimum", -inf), _number(other, "exclusiveMaximum", inf)
    return least > most or max(least, past) >= below or past >= min(most, below)


def _number(schema: Schema, key: str, default: float) -> float:
    value = schema.get(key)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else default


def _list(schema: Schema, key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []
