"""JSON Schemas of Structs, described: msgspec writes the schema, the docstring has a sentence for each field.

    class Moved(Struct):
        '''Something the canonical order put elsewhere.

        source: where it stood, e.g. `messages[3]`. target: where it stands.
        '''

Text before the first field's name describes the Struct; text after `name:` or `name, name:` describes the field.
"""

import re
from collections.abc import Iterable
from inspect import cleandoc
from typing import Any

import msgspec

REF_TEMPLATE = "#/components/schemas/{name}"


def split_docstring(docstring: str, fields: Iterable[str]) -> tuple[str, dict[str, str]]:
    """What it says of the whole, and of each of `fields` that it names."""
    names = "|".join(map(re.escape, sorted(fields, key=len, reverse=True)))
    if not names:
        return _one_line(docstring), {}
    label = re.compile(rf"(?:^|(?<=\s))((?:{names})(?:, (?:{names}))*): ")
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
    for schema in components.values():
        _describe(schema)
    return dict(zip(wanted, schemas, strict=True)), components


def _describe(schema: dict[str, Any]) -> None:
    properties: dict[str, dict[str, Any]] = schema.get("properties", {})
    text, of_fields = split_docstring(schema.get("description", ""), properties)
    schema.pop("description", None)
    if text:
        schema["description"] = text
    for name, field_text in of_fields.items():
        properties[name]["description"] = field_text


def _one_line(text: str) -> str:
    """Paragraphs stay, line breaks inside them go."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n")).strip()
