"""The OpenAPI document says what the routes, their guards and their Structs say."""

from typing import Annotated, Any

from litestar import Litestar, get
from litestar.params import FromPath, QueryParameter
from msgspec import Meta, Struct

from proxy.app import create_app
from proxy.completion_schemas import CompletionBody
from proxy.documented import answers
from proxy.openapi import ERRORS, openapi_document
from proxy.schemas import CHAT_DECODER, ENCODER, ChatCompletionRequest
from proxy.settings import Settings
from proxy.struct_schemas import component_schemas, split_docstring

DOCUMENT = openapi_document(create_app(Settings()))
OPERATIONS = {f"{method} {path}": said for path, item in DOCUMENT["paths"].items() for method, said in item.items()}
SCHEMAS = DOCUMENT["components"]["schemas"]
GENERATING = ("ChatCompletionRequest", "CompletionBody", "ResponseRequest", "ResponseContext")


def statuses(operation: str) -> set[int]:
    return {int(status) for status in OPERATIONS[operation]["responses"]}


def test_every_operation_has_a_summary_a_tag_and_an_id_of_its_own() -> None:
    assert all(operation["summary"] and operation["tags"] for operation in OPERATIONS.values())
    assert len({operation["operationId"] for operation in OPERATIONS.values()}) == len(OPERATIONS)


def test_errors_follow_from_body_guards_and_what_the_handler_says() -> None:
    assert statuses("get /health") == {200, 500, 503}
    assert statuses("get /v1/models") == {200, 401, 500, 503}
    assert statuses("get /v1/models/{model_id}") == {200, 401, 404, 500, 503}
    assert statuses("post /v1/chat/completions") == {200, 400, 401, 404, 408, 413, 429, 500, 503, 504}
    assert {int(status) for status in DOCUMENT["components"]["responses"]} == set(ERRORS)


def test_only_routes_behind_the_key_ask_for_it() -> None:
    open_routes = {name for name, said in OPERATIONS.items() if "security" not in said}
    assert all("/v1/" not in name for name in open_routes)
    elsewhere = {name for name in set(OPERATIONS) - open_routes if "/v1/" not in name}
    assert all(name.replace(" /", " /v1/") in OPERATIONS for name in elsewhere), "the same as one under /v1, no other"


def test_headers_are_described_where_they_are_sent() -> None:
    responses = DOCUMENT["components"]["responses"]
    assert all("x-request-id" in response["headers"] for response in responses.values())
    assert {status for status, response in responses.items() if "Retry-After" in response["headers"]} == {"429", "503"}


def test_every_reference_leads_somewhere() -> None:
    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    for reference in references(DOCUMENT):
        found: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
        assert found


def test_every_field_is_described() -> None:
    """A tag's field (`type`, `role`) needs no words: it has one value."""
    silent = [
        f"{name}.{field}"
        for name, schema in SCHEMAS.items()
        for field, said in schema.get("properties", {}).items()
        if "description" not in said and len(said.get("enum", "??")) > 1
    ]
    assert silent == [], "say in the Struct's docstring `field: what it is.`"


def test_bounds_survive_null_and_nesting() -> None:
    fields = SCHEMAS["ChatCompletionRequest"]["properties"]
    assert fields["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}
    assert fields["stop"]["anyOf"][1]["maxItems"] == 4
    assert fields["metadata"]["anyOf"][0]["maxProperties"] == 16
    assert fields["messages"]["items"]["discriminator"]["propertyName"] == "role"


def test_examples_are_bodies_that_the_schema_s_own_struct_takes() -> None:
    [example] = [OPERATIONS["post /v1/chat/completions"]["requestBody"]["content"]["application/json"]["example"]]
    assert CHAT_DECODER.decode(ENCODER.encode(example)).messages


def test_a_stream_is_described_beside_the_whole_answer() -> None:
    content = OPERATIONS["post /v1/chat/completions"]["responses"]["200"]["content"]
    assert content["application/json"]["schema"]["$ref"].endswith("/ChatCompletion")
    done, encoded = content["text/event-stream"]["itemSchema"]["properties"]["data"]["anyOf"]
    chunk, error = (schema["$ref"].rsplit("/", 1)[1] for schema in encoded["contentSchema"]["anyOf"])
    assert (done, chunk, error) == ({"const": "[DONE]"}, "ChatCompletionChunk", "ErrorBody")


class Place(Struct):
    """Where it stands.

    line, column: counted from one. name: of a file, or
    of something else.
    """

    line: int
    column: Annotated[int, Meta(ge=1)]
    name: str
    other: str = ""


def test_a_docstring_describes_the_struct_and_its_fields() -> None:
    [reference], components = component_schemas([Place])[0].values(), component_schemas([Place])[1]
    assert reference == {"$ref": "#/components/schemas/Place"}
    place = components["Place"]
    assert place["description"] == "Where it stands."
    texts = {name: field.get("description") for name, field in place["properties"].items()}
    counted = "counted from one."
    assert texts == {"line": counted, "column": counted, "name": "of a file, or of something else.", "other": None}
    assert place["properties"]["column"]["minimum"] == 1


class NamedPlace(Place):
    """With a name.

    more: than a place has. other: said anew.
    """

    more: str = ""


def test_a_struct_s_base_describes_what_it_inherits_unless_it_does_so_itself() -> None:
    place = component_schemas([NamedPlace])[1]["NamedPlace"]
    assert place["description"] == "With a name."
    texts = {name: field["description"] for name, field in place["properties"].items()}
    name, counted = "of a file, or of something else.", "counted from one."
    assert texts == {
        "more": "than a place has.",
        "other": "said anew.",
        "line": counted,
        "column": counted,
        "name": name,
    }
    assert list(place["properties"])[:2] == ["other", "more"], "its own first"


def test_a_field_of_several_requests_is_described_once() -> None:
    described = [SCHEMAS[name]["properties"]["temperature"]["description"] for name in GENERATING]
    assert len(set(described)) == 1
    assert not any("temperature" in kind.__annotations__ for kind in (ChatCompletionRequest, CompletionBody))


def test_a_colon_after_another_word_is_text() -> None:
    assert split_docstring("Note: a name: it is.", ["name"]) == ("Note: a", {"name": "it is."})
    assert split_docstring("A surname: kept.", ["name"]) == ("A surname: kept.", {})
    assert split_docstring("Whole. name:\n  `it` is.", ["name"]) == ("Whole.", {"name": "`it` is."})
    assert split_docstring("Anything: goes.", []) == ("Anything: goes.", {})


Limit = Annotated[int, QueryParameter(description="At most so many.", ge=1)]


def test_parameters_of_path_and_query_are_described() -> None:
    @get("/things/{name:str}", tags=["T"], summary="s", opt=answers(404))
    async def things(name: FromPath[str], limit: Limit = 20) -> Place:
        raise NotImplementedError

    [operation] = openapi_document(Litestar([things], openapi_config=None))["paths"]["/things/{name}"].values()
    path, query = operation["parameters"]
    assert (path["name"], path["in"], path["required"]) == ("name", "path", True)
    assert (query["name"], query["in"], query["required"]) == ("limit", "query", False)
    assert query["description"] == "At most so many."
    assert query["schema"] == {"type": "integer", "minimum": 1}
    assert "404" in operation["responses"]
