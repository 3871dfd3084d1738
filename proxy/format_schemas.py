"""What an answer must look like, as a request says it (`response_format`), and the grammar that it means. Pure."""

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from sessions.types import Grammar

SchemaName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]

_ANY_OBJECT: Final = {"type": "object"}


class ResponseFormatText(Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Any text."""


class ResponseFormatJsonObject(Struct, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class JsonSchema(Struct, frozen=True, kw_only=True, rename={"schema_": "schema"}):
    """A schema and its name.

    name: letters, digits, `_` and `-`. schema: a JSON Schema; any object without one. description: taken, without
    effect. strict: the schema is enforced in any case.
    """

    name: SchemaName
    schema_: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormatJsonSchema(Struct, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    """JSON that matches a schema, and nothing else.

    json_schema: the schema and its name.
    """

    json_schema: JsonSchema


ResponseFormat = ResponseFormatText | ResponseFormatJsonObject | ResponseFormatJsonSchema


def format_grammar(response_format: ResponseFormat | None) -> Grammar | None:
    """None for any text."""
    match response_format:
        case ResponseFormatJsonSchema():
            return schema_grammar(response_format.json_schema.schema_, "response_format.json_schema.schema")
        case ResponseFormatJsonObject():
            return schema_grammar(None, "response_format")
        case _:
            return None


def schema_grammar(schema: dict[str, Any] | None, param: str) -> Grammar:
    """JSON that matches `schema`: keys in its order. None: any object."""
    source = msgspec.json.encode(_ANY_OBJECT if schema is None else schema).decode()
    return Grammar("json_schema", source, param)
