"""JSON Schemas of Structs, described: msgspec writes the schema, the docstring has a sentence for each field.

    class Moved(Struct):
        '''Something the canonical order put elsewhere.

        source: where it stood, e.g. `messages[3]`. target: where it stands.
        '''

Text before the first field's name describes the Struct; text after `name:` or `name, name:` describes the field. What a
Struct inherits is described by its base, unless it says something else of it; its own fields come first.
"""

import re
from collections.abc import Iterable
from inspect import cleandoc
from itertools import takewhile
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.inspect import DataclassType, StructType, Type, multi_type_info

REF_TEMPLATE = "#/components/schemas/{name}"


def split_docstring(docstring: str, fields: Iterable[str]) -> tuple[str, dict[str, str]]:
    """What it says of the whole, and of each of `fields` that it names."""
    names = "|".join(map(re.escape, sorted(fields, key=len, reverse=True)))
    if not names:
        return _one_line(docstring), {}
    label = re.compile(rf"(?:^|(?<=\s))((?:{names})(?:, (?:{names}))*):\s")
    whole, *labelled = label.split(cleandoc(docstring))
    texts = {
        name: _one_line(text)
        for group, text in zip(labelled[::2], labelled[1::2], strict=True)
        for name in group.split(", ")
    }
    return _one_line(whole), texts


def component_schemas(types: Iterable[Any]) -> tuple[dict[Any, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The schema of each of `types` (a reference, for a Struct), and those of all Structs they are made of, by name."""
    wanted = list(types)
    schemas, components = msgspec.json.schema_components(wanted, ref_template=REF_TEMPLATE)
    structs = _structs_of(wanted)
    for name, schema in components.items():
        _describe(schema, structs[name])
    return dict(zip(wanted, schemas, strict=True)), components


def _structs_of(types: Iterable[Any]) -> dict[str, type]:
    """All that they are made of, by the names that their schemas have: of two with one name, those of their modules."""
    found: dict[str, type] = {}
    pending: list[Any] = list(multi_type_info(types))
    while pending:
        match pending.pop():
            case StructType(cls=kind, fields=fields) | DataclassType(cls=kind, fields=fields):
                if kind not in found.values():
                    found |= {kind.__name__: kind, f"{kind.__module__}.{kind.__qualname__}": kind}
                    pending += [field.type for field in fields]
            case tuple(several):
                pending += several
            case Type() as one:
                pending += [getattr(one, name) for name in one.__struct_fields__]
    return found


def _describe(schema: dict[str, Any], kind: type) -> None:
    """The nearest Struct that describes a field does; fields stand in the order of who describes them."""
    properties: dict[str, dict[str, Any]] = schema.get("properties", {})
    described: dict[str, tuple[int, str]] = {}
    for distance, base in enumerate(takewhile(lambda base: base not in (Struct, object), kind.__mro__)):
        text, of_fields = split_docstring(vars(base)["__doc__"] or "", properties)
        schema["description"] = schema["description"] if distance else text
        described = {name: (distance, said) for name, said in of_fields.items()} | described
    if not schema["description"]:
        del schema["description"]
    for name in sorted(properties, key=lambda name: described.get(name, (0, ""))[0]):
        properties[name] = properties.pop(name) | ({"description": described[name][1]} if name in described else {})


def _one_line(text: str) -> str:
    """Paragraphs stay, line breaks inside them go."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n")).strip()
