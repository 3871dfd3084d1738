"""References: where each `$ref` of a JSON Schema leads, or that it is not followed. Pure.

llguidance follows pointers, anchors and identifiers, and what it finds that is not found here would escape every bound.
So a reference leads to exactly one place, or it is refused:

    #/$defs/a, #/properties/b   a pointer from the whole, also behind the whole's own $id
    #name                       an anchor, if the name stands once in all there is, data included
    anything else               refused; so is every one where a part has an $id, from which its pointers would start
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, reduce
from typing import Any, Final
from urllib.parse import unquote

Schema = Mapping[str, Any]

_DATA: Final = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose values are no schemas, whatever they look like."""
_NAMED: Final = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_ANCHORS: Final = ("$anchor", "$dynamicAnchor")


class SchemaRefused(Exception):
    """The keyword and what is too much about it, or wrong."""


class References:
    """Of one schema; `root` is whatever JSON it is."""

    def __init__(self, root: Any) -> None:
        self._root = root

    def target(self, node: Schema) -> tuple[Schema, ...]:
        """What the node's reference leads to; nothing without one, or where that says nothing. Raises SchemaRefused."""
        reference = node.get("$ref")
        if not isinstance(reference, str):
            return ()
        base, _, pointer = reference.partition("#")
        if base and base != self._root.get("$id"):
            raise SchemaRefused("$ref: it leads out of this schema")
        try:
            name, *steps = (_unescaped(step) for step in unquote(pointer, errors="strict").split("/"))
            at = reduce(_step, steps, self._anchors[name] if name else self._root)
        except (LookupError, ValueError):
            raise SchemaRefused("$ref: it leads to nothing in this schema, or to one $anchor of several") from None
        if self._has_inner_id or (self._has_id_in_data and not _DATA.isdisjoint(steps)):
            raise SchemaRefused("$ref: where a part of the schema has its own $id, references are not followed")
        return (at,) if isinstance(at, dict) else ()

    @cached_property
    def _anchors(self) -> dict[str, Schema]:
        """By name. What is an anchor to whoever compiles the schema is among all objects, so it is the only one."""
        anchored = [(at[key], at) for at in _objects(self._root, "any") for key in _ANCHORS if key in at]
        named = [(name, at) for name, at in anchored if isinstance(name, str)]
        num_named = Counter(name for name, _ in named)
        return {name: at for name, at in named if num_named[name] == 1}

    @cached_property
    def _has_inner_id(self) -> bool:
        return self._has_id(_objects(self._root, "schema"))

    @cached_property
    def _has_id_in_data(self) -> bool:
        return self._has_id(_objects(self._root, "any"))

    @cached_property
    def _identifiers(self) -> tuple[str, ...]:
        """Keywords that give a part a name of its own."""
        is_old = any("draft-04" in str(at.get("$schema")) for at in _objects(self._root, "any"))
        return ("$id", "id") if is_old else ("$id",)

    def _has_id(self, nodes: Iterable[Schema]) -> bool:
        inner = (node for node in nodes if node is not self._root)
        return any(isinstance(node.get(keyword), str) for node in inner for keyword in self._identifiers)


def _unescaped(step: str) -> str:
    return step.replace("~1", "/").replace("~0", "~")


def _step(at: Any, name: str) -> Any:
    """A member or an item. LookupError or ValueError if there is none."""
    if isinstance(at, dict):
        return at[name]
    if isinstance(at, list) and name.isdecimal():
        return at[int(name)]
    raise LookupError(name)


def _objects(root: Any, kind: str) -> Iterator[Schema]:
    """All objects in `root` and itself: of kind "any", or of a "schema" those that are no data."""
    stack: list[tuple[Any, str]] = [(root, kind)]
    seen: set[tuple[int, str]] = set()
    while stack:
        at, kind = stack.pop()
        if not isinstance(at, (dict, list)) or (id(at), kind) in seen:
            continue
        seen.add((id(at), kind))
        if isinstance(at, list):
            stack += ((part, kind) for part in at)
            continue
        yield at
        stack += ((part, _kind_below(kind, key)) for key, part in at.items() if kind != "schema" or key not in _DATA)


def _kind_below(kind: str, key: str) -> str:
    """The names in `properties` and its kin are no keywords."""
    if kind == "any":
        return kind
    return "names" if kind == "schema" and key in _NAMED else "schema"
