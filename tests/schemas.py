"""JSON Schemas that a grammar must obey to the letter, named after what they try."""

from typing import Any

SHORT: dict[str, Any] = {"type": "string", "maxLength": 12}


def closed(**properties: Any) -> dict[str, Any]:
    """An object of these properties, all required, and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


NAMED: dict[str, dict[str, Any]] = {
    "recursion": {
        "$ref": "#/$defs/node",
        "$defs": {"node": closed(v={"type": "integer"}, n={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})},
    },
    "recursion through the root": closed(items={"type": "array", "items": {"$ref": "#"}, "maxItems": 2}),
    "mutual recursion": {
        "$ref": "#/$defs/a",
        "$defs": {
            "a": closed(b={"anyOf": [{"$ref": "#/$defs/b"}, {"type": "boolean"}]}),
            "b": closed(a={"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}]}),
        },
    },
    "$defs": {"$defs": {"name": SHORT}, **closed(first={"$ref": "#/$defs/name"}, last={"$ref": "#/$defs/name"})},
    "definitions": {"definitions": {"x": {"const": 1}}, **closed(x={"$ref": "#/definitions/x"})},
    "a pointer with escapes": {"$defs": {"a/b~c": {"type": "null"}}, **closed(x={"$ref": "#/$defs/a~1b~0c"})},
    "anyOf": {"anyOf": [closed(a=SHORT), closed(b={"type": "integer"}), {"type": "null"}]},
    "anyOf that shares beginnings": {"anyOf": [closed(aa=SHORT), closed(ab=SHORT), closed(aab=SHORT)]},
    "oneOf, apart by a const": {"oneOf": [closed(kind={"const": "cat"}, lives={"type": "integer"}),
                                          closed(kind={"const": "dog"}, name=SHORT)]},
    "oneOf, apart by type": {"oneOf": [{"type": "boolean"}, {"type": "integer"}]},
    "oneOf, apart behind references": {
        "$defs": {"cat": closed(kind={"const": "cat"}), "dog": closed(kind={"enum": ["dog", "wolf"]}, name=SHORT)},
        **closed(pet={"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], "discriminator": {}}),
    },
    "oneOf, apart by bounds": {"type": "integer",
                               "oneOf": [{"minimum": -3, "maximum": 3}, {"minimum": 9, "maximum": 12}]},
    "uniqueItems where there is one": {"type": "array", "items": {"type": "null"}, "maxItems": 1, "uniqueItems": True},
    "allOf": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 17}]},
    "allOf of objects": {"allOf": [{"type": "object", "properties": {"a": SHORT}, "required": ["a"]},
                                   {"properties": {"b": {"type": "null"}}, "required": ["b"]},
                                   {"maxProperties": 2}]},
    "const": closed(x={"const": {"deep": [1, "two", None]}}),
    "enum": {"enum": ["red", "green", 3, None, [1], {"a": 1}]},
    "enum of prefixes": {"enum": ["a", "aa", "aaa", ""]},
    "enum of what must be escaped": {"enum": ['"', "\\", "\n", "\t/", "\x01"]},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"},
    "pattern, not anchored": {"type": "string", "pattern": "ab+c", "maxLength": 10},
    "pattern with alternatives": {"type": "string", "pattern": "^(foo|ba[rz]|\\d+)$", "maxLength": 8},
    "pattern of letters": {"type": "string", "pattern": "^[一-龥]{1,3}é$"},
    "format date-time": closed(at={"type": "string", "format": "date-time"}),
    "format date": {"type": "string", "format": "date"},
    "format uuid": {"type": "string", "format": "uuid"},
    "format ipv4": {"type": "string", "format": "ipv4"},
    "format email": {"type": "string", "format": "email", "maxLength": 30},
    "integer bounds": {"type": "integer", "minimum": -13, "exclusiveMaximum": 1024},
    "number bounds": {"type": "number", "exclusiveMinimum": 0.25, "maximum": 99.5},
    "multipleOf": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
    "string bounds": {"type": "string", "minLength": 3, "maxLength": 5},
    "array bounds": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "unicode keys and values": closed(**{"名前": {"enum": ["東京", "😀", "é"]}, "ключ": {"const": "ß"}}),
    "odd keys": closed(**{"": {"type": "null"}, 'quo"te': {"type": "null"}, "back\\slash": {"type": "null"},
                          "new\nline": {"type": "null"}, "{}": {"type": "null"}, "$ref": {"type": "null"}}),
    "the empty object": closed(),
    "the empty array": {"type": "array", "maxItems": 0},
    "no schema for a value": closed(x={}),
    "prefixItems": {"type": "array", "prefixItems": [SHORT, {"type": "integer"}], "items": False, "minItems": 2},
    "prefixItems and more": {"type": "array", "prefixItems": [{"const": 1}], "items": {"type": "null"}, "minItems": 1,
                             "maxItems": 3},
    "additionalProperties of a type": {"type": "object", "additionalProperties": {"type": "integer"},
                                       "maxProperties": 2},
    "additionalProperties beside properties": {"type": "object", "properties": {"id": {"type": "integer"}},
                                               "required": ["id"], "additionalProperties": {"type": "boolean"},
                                               "maxProperties": 3},
    "patternProperties": {"type": "object", "patternProperties": {"^x[0-9]$": {"type": "boolean"}},
                          "additionalProperties": False, "maxProperties": 3},
    "minProperties": {"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 1,
                      "maxProperties": 2},
    "required without properties": {"type": "object", "required": ["a"], "additionalProperties": {"type": "boolean"},
                                    "maxProperties": 2},
    "optional properties": {"type": "object", "additionalProperties": False,
                            "properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}},
    "nested arrays": {"type": "array", "maxItems": 2, "minItems": 1,
                      "items": {"type": "array", "maxItems": 2, "items": {"type": "array", "maxItems": 1,
                                                                        "items": {"type": "integer"}}}},
    "nullable": closed(x={"type": ["string", "null"], "maxLength": 4}, y={"anyOf": [SHORT, {"type": "null"}]}),
    "types": {"type": ["integer", "boolean", "null"]},
    "annotations": {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "T", "description": "D",
                    **closed(x={"type": "boolean", "default": True, "examples": [True], "deprecated": True})},
    "deep": closed(a=closed(b=closed(c=closed(d=closed(e=closed(f=closed(g={"type": "boolean"}))))))),
    "many properties": closed(**{f"field_{index}": {"type": "boolean"} for index in range(30)}),
}  # fmt: skip
