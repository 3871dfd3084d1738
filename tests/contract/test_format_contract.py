"""`response_format` through the official client: parsed, streamed, with all that goes beside it; refusals by name."""

import json
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

import jsonschema
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

from sessions.grammars import Grammars
from tests.contract.conftest import RunningServer, running, shared_tokenizer
from tests.schemas import NAMED, closed

MESSAGES: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(engine={"max_model_len": 1000}) as started:
        yield started
        started.expect_idle()


class Color(StrEnum):
    RED = "red"
    GREEN = "green"


class Step(BaseModel):
    label: Color
    done: bool


class Plan(BaseModel):
    title: str = Field(pattern="^[a-z]{3,8}$")
    count: int = Field(ge=0, le=99)
    steps: list[Step] = Field(min_length=1, max_length=3)
    parent: "Plan | None" = None


def json_schema(schema: dict[str, Any] | None, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **fields}}


def text_of(client: OpenAI, response_format: dict[str, Any], **parameters: Any) -> str:
    asked: dict[str, Any] = {"model": "fake", "messages": MESSAGES, "response_format": response_format} | parameters
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "stop"
    return choice.message.content or ""


@pytest.mark.parametrize("temperature", [0, 2])
def test_a_pydantic_model_is_parsed(client: OpenAI, temperature: float) -> None:
    completion = client.chat.completions.parse(
        model="fake", messages=MESSAGES, response_format=Plan, temperature=temperature, n=3, seed=7
    )
    assert len(completion.choices) == 3
    for choice in completion.choices:
        assert isinstance(choice.message.parsed, Plan)
        assert choice.finish_reason == "stop" and choice.message.refusal is None


def test_the_stream_helper_parses_every_delta(client: OpenAI) -> None:
    """It raises on what is no beginning of JSON: a fence, a preamble."""
    with client.chat.completions.stream(model="fake", messages=MESSAGES, response_format=Plan) as stream:
        snapshots = [event.parsed for event in stream if event.type == "content.delta"]
        parsed = stream.get_final_completion().choices[0].message.parsed
    assert isinstance(parsed, Plan)
    assert len(snapshots) > 3


@pytest.mark.parametrize("name", ["recursion", "odd keys", "unicode keys and values", "oneOf, apart by a const"])
@pytest.mark.parametrize("strict", [True, False, None])
def test_a_schema_is_obeyed_whatever_strict_says(client: OpenAI, name: str, strict: bool | None) -> None:
    jsonschema.validate(json.loads(text_of(client, json_schema(NAMED[name], strict=strict))), NAMED[name])


def test_without_a_schema_it_is_an_object(client: OpenAI) -> None:
    limited = {"max_tokens": 300, "seed": 1}
    for response_format in ({"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "n"}}):
        completion = client.chat.completions.create(
            model="fake", messages=MESSAGES, response_format=response_format, **limited
        )  # type: ignore[call-overload]
        text = completion.choices[0].message.content
        assert text.startswith("{")
        if completion.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(text), dict)


def test_what_goes_beside_it(client: OpenAI) -> None:
    schema = closed(a={"enum": ["x", "y"]}, b={"const": 1})
    asked: dict[str, Any] = {"model": "fake", "messages": MESSAGES, "response_format": json_schema(schema)}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2, logit_bias={"120": -100})
    (choice,) = whole.choices
    assert choice.message.content == '{"a": "y", "b": 1}' or choice.message.content == '{"a": "x", "b": 1}'
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert "".join(score.token for score in choice.logprobs.content) == choice.message.content
    stopped = client.chat.completions.create(**asked, stop='"b"')
    assert (stopped.choices[0].message.content or "").endswith('", ') and stopped.choices[0].finish_reason == "stop"
    cut = client.chat.completions.create(**asked, max_tokens=4)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ('{"a"', "length")
    ignoring = client.chat.completions.create(**asked, extra_body={"ignore_eos": True})
    jsonschema.validate(json.loads(ignoring.choices[0].message.content or ""), schema)


def test_the_next_turn_reuses_a_constrained_reply(client: OpenAI) -> None:
    schema = json_schema(closed(name={"type": "string", "maxLength": 8}))
    said = text_of(client, schema)
    turns = [*MESSAGES, {"role": "assistant", "content": said}, {"role": "user", "content": "and?"}]
    usage = client.chat.completions.create(model="fake", messages=turns, max_tokens=1).usage
    assert usage is not None and usage.prompt_tokens_details is not None
    first = client.chat.completions.create(model="fake", messages=MESSAGES, max_tokens=1).usage
    assert first is not None
    assert (usage.prompt_tokens_details.cached_tokens or 0) >= first.prompt_tokens + len(said) - 1


@pytest.mark.parametrize(
    ("response_format", "param"),
    [
        ("text", "response_format"),
        ({"type": "yaml"}, "response_format.type"),
        ({}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {}}, "response_format.json_schema.name"),
        ({"type": "json_schema", "json_schema": {"name": "a b"}}, "response_format.json_schema.name"),
        ({"type": "json_schema", "json_schema": {"name": "a\n"}}, "response_format.json_schema.name"),
        ({"type": "json_schema", "json_schema": {"name": "x" * 65}}, "response_format.json_schema.name"),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": []}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "n", "strict": 1}}, "response_format.json_schema.strict"),
        (json_schema({"not": {}}), "response_format.json_schema.schema"),
        (json_schema({"const": "x" * 200_000}), "response_format.json_schema.schema"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused(client: OpenAI, response_format: Any, param: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="fake", messages=MESSAGES, response_format=response_format, stream=stream)
    assert refused.value.param == param
    assert refused.value.code in ("invalid_value", "missing_required_parameter")


def test_the_refusal_of_a_schema_names_the_keyword(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        text_of(client, json_schema({"type": "array", "uniqueItems": True}))


@pytest.fixture
def impatient(server: RunningServer) -> Iterator[None]:
    """A schema has little processor time."""
    grammars, hasty = server.service.grammars, Grammars(shared_tokenizer(), patience_s=(0.1, 0.15))
    server.on_loop(lambda: setattr(server.service, "grammars", hasty))
    yield
    server.on_loop(lambda: setattr(server.service, "grammars", grammars))
    hasty.close()


@pytest.mark.usefixtures("impatient")
def test_a_schema_that_takes_too_long_is_refused_and_others_are_served(client: OpenAI) -> None:
    slow = closed(**{f"field_{number}": {"type": "string"} for number in range(5000)})
    text: Any = {"format": {"type": "json_schema", "name": "answer", "schema": slow}}
    attempts: dict[str, Callable[[], Any]] = {
        "response_format.json_schema.schema": lambda: text_of(client, json_schema(slow), stream=True),
        "text.format.schema": lambda: client.responses.create(model="fake", input="hello", text=text),
    }
    for param, attempt in attempts.items():
        with pytest.raises(openai.BadRequestError, match=r"more than 0\.15 s") as refused:
            attempt()
        assert (refused.value.param, refused.value.code) == (param, "invalid_value")
        assert text_of(client, json_schema({"const": param})) == f'"{param}"'


def test_responses_obey_text_format(client: OpenAI) -> None:
    response = client.responses.parse(model="fake", input="hello", text_format=Plan)
    assert isinstance(response.output_parsed, Plan)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(
            model="fake", input="x", text={"format": {"type": "json_schema", "name": "n", "schema": {"not": {}}}}
        )
    assert refused.value.param == "text.format.schema"
