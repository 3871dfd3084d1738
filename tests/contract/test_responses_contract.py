"""The official client over /v1/responses and /v1/conversations: each row that is built, whole and streamed."""

from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response
from pydantic import BaseModel

from tests.contract.conftest import RunningServer, Serve

QUESTION = "a question of some length, to fill blocks"
SAYING = {"ignore_eos": True}


def ask(client: OpenAI, given: Any = QUESTION, **parameters: Any) -> Response:
    extra = SAYING | parameters.pop("extra_body", {})
    defaults: dict[str, Any] = {"temperature": 0, "max_output_tokens": 12, "extra_body": extra}
    return client.responses.create(model="fake", input=given, **(defaults | parameters))


def events(client: OpenAI, given: Any = QUESTION, **parameters: Any) -> list[Any]:
    return list(ask(client, given, stream=True, **parameters))  # type: ignore[call-overload]


def refusal(client: OpenAI, error: type[openai.APIStatusError], **parameters: Any) -> openai.APIStatusError:
    with pytest.raises(error) as refused:
        ask(client, **parameters)
    return refused.value


def cached(response: Response) -> int:
    assert response.usage is not None
    return response.usage.input_tokens_details.cached_tokens


# -- the whole answer --


def test_a_whole_response_has_every_field(client: OpenAI) -> None:
    response = ask(client, metadata={"k": "v"}, user="u", service_tier="flex", instructions="Be brief.")
    assert response.id.startswith("resp_") and response.object == "response" and response.model == "fake"
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")  # type: ignore[union-attr]
    [message] = response.output
    assert message.type == "message" and message.role == "assistant" and message.status == "incomplete"
    assert message.content[0].type == "output_text" and message.content[0].text == response.output_text != ""
    usage = response.usage
    assert usage is not None and usage.output_tokens == 12 and usage.total_tokens == usage.input_tokens + 12
    details = usage.input_tokens_details
    assert details.cache_write_tokens == usage.input_tokens - details.cached_tokens
    assert usage.output_tokens_details.reasoning_tokens == 0
    assert (response.metadata, response.user, response.service_tier) == ({"k": "v"}, "u", "default")
    assert (response.instructions, response.truncation, response.background) == ("Be brief.", "disabled", False)
    assert (response.tools, response.tool_choice, response.parallel_tool_calls) == ([], "auto", True)
    assert response.text is not None and response.text.format is not None and response.text.format.type == "text"
    assert response.error is None and response.previous_response_id is None


def test_a_response_that_ends_by_itself_is_completed(client: OpenAI) -> None:
    response = ask(client, max_output_tokens=None, extra_body={"ignore_eos": False})
    assert response.status == "completed" and response.incomplete_details is None
    assert response.completed_at is not None and response.output[0].status == "completed"  # type: ignore[union-attr]


def test_ids_are_unique(client: OpenAI) -> None:
    responses = [ask(client, max_output_tokens=1) for _ in range(3)]
    assert len({response.id for response in responses}) == len({r.output[0].id for r in responses}) == 3


def test_every_form_of_input_means_the_same(client: OpenAI) -> None:
    forms: list[Any] = [
        QUESTION,
        [{"role": "user", "content": QUESTION}],
        [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]}],
        [{"role": "user", "content": [{"type": "input_text", "text": text} for text in (QUESTION[:9], QUESTION[9:])]}],
    ]  # fmt: skip
    answers = [ask(client, form) for form in forms]
    assert len({answer.output_text for answer in answers}) == 1
    chat = client.chat.completions.create(
        model="fake", messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=12, extra_body=SAYING
    )
    assert chat.choices[0].message.content == answers[0].output_text


def test_a_whole_history_can_be_sent(client: OpenAI) -> None:
    history: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "add"}]},
        {"type": "function_call", "call_id": "call_1", "name": "add", "arguments": "{}", "id": "fc_1"},
        {"type": "function_call_output", "call_id": "call_1", "output": "4"},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "Four.", "annotations": []}, {"type": "refusal", "refusal": "!"}]},
        {"role": "assistant", "content": "Anything else?"},
        {"role": "user", "content": "No."},
    ]  # fmt: skip
    response = ask(client, history)
    assert response.output_text
    listed = client.responses.input_items.list(response.id, order="asc").data
    assert [item.type for item in listed] == [
        "message", "message", "reasoning", "function_call", "function_call_output", "message", "message", "message",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 2},
        {"top_p": 0.1},
        {"include": ["reasoning.encrypted_content"]},
        {"prompt_cache_key": "k", "safety_identifier": "s"},
        {"prompt_cache_retention": "24h"},
        {"prompt_cache_options": {"mode": "implicit", "ttl": "12h"}},
        {"reasoning": {"effort": "low", "summary": "auto"}},
        {"text": {"format": {"type": "text"}, "verbosity": "low"}},
        {"parallel_tool_calls": False, "tool_choice": "none"},
        {"truncation": "auto"},
        {"store": False},
        {"background": False},
        {"max_output_tokens": 1},
        {"extra_body": {"top_k": 3, "min_p": 0.1, "seed": -5, "cache_salt": "mine", "unknown": {"a": 1}}},
    ],
    ids=lambda parameters: next(iter(parameters)),
)
def test_a_parameter_is_taken(client: OpenAI, parameters: dict[str, Any]) -> None:
    assert ask(client, **parameters).status in ("completed", "incomplete")


def test_a_seed_repeats(client: OpenAI) -> None:
    first, again = (ask(client, temperature=1, extra_body={"seed": 7}).output_text for _ in range(2))
    assert first == again


def test_logprobs_come_with_the_text_whole_and_streamed(client: OpenAI) -> None:
    asked: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    part: Any = ask(client, **asked).output[0].content[0]  # type: ignore[union-attr]
    assert len(part.logprobs) == 12 and all(len(entry.top_logprobs) == 2 for entry in part.logprobs)
    assert all(entry.logprob <= 0 for entry in part.logprobs)
    stream = events(client, **asked)
    pieces = [event.logprobs for event in stream if event.type == "response.output_text.delta"]
    [done] = [event for event in stream if event.type == "response.output_text.done"]
    tokens = [entry.token for entry in part.logprobs]
    assert [entry.token for piece in pieces for entry in piece] == [entry.token for entry in done.logprobs] == tokens
    without: Any = ask(client, include=["message.output_text.logprobs"]).output[0].content[0]  # type: ignore[union-attr]
    assert [entry.token for entry in without.logprobs] == tokens and without.logprobs[0].top_logprobs == []
    plain: Any = ask(client).output[0].content[0]  # type: ignore[union-attr]
    assert not plain.logprobs


class Light(BaseModel):
    color: Literal["red", "green"]
    is_on: bool


def test_a_pydantic_model_is_parsed_whole_and_streamed(client: OpenAI) -> None:
    parsed = client.responses.parse(model="fake", input="hello", text_format=Light, temperature=1)
    assert isinstance(parsed.output_parsed, Light) and parsed.status == "completed"
    with client.responses.stream(model="fake", input="hello", text_format=Light, temperature=1) as stream:
        done: Any = [event for event in stream if event.type == "response.output_text.done"]
        final = stream.get_final_response()
    assert isinstance(final.output_parsed, Light) and done[0].parsed == final.output_parsed
    assert parsed.text is not None and parsed.text.format is not None and parsed.text.format.type == "json_schema"
    assert client.responses.retrieve(parsed.id).output_text == parsed.output_text


def test_a_turn_after_a_formatted_one_is_continued_token_exactly(client: OpenAI) -> None:
    closed = Light.model_json_schema() | {"additionalProperties": False}
    first = ask(
        client,
        text={"format": {"type": "json_schema", "name": "light", "schema": closed}},
        max_output_tokens=200,
        temperature=1,
    )
    assert Light.model_validate_json(first.output_text)
    second = ask(client, "On?", previous_response_id=first.id)
    assert second.anaphora["spliced_messages"] == 1  # type: ignore[attr-defined]


def test_a_json_object_is_one(client: OpenAI) -> None:
    response = ask(client, text={"format": {"type": "json_object"}}, max_output_tokens=4, temperature=0)
    assert response.output_text.startswith("{")


# -- streamed --


def test_the_events_of_a_stream_come_in_order(client: OpenAI) -> None:
    stream = events(client)
    kinds = [event.type.removeprefix("response.") for event in stream]
    num_deltas = kinds.count("output_text.delta")
    assert num_deltas > 0 and kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * num_deltas,
        "output_text.done", "content_part.done", "output_item.done", "incomplete",
    ]  # fmt: skip
    assert [event.sequence_number for event in stream] == list(range(len(stream)))
    final = stream[-1].response
    assert {event.response.id for event in stream if hasattr(event, "response")} == {final.id}
    in_item = [event for event in stream if hasattr(event, "item_id")]
    assert {event.item_id for event in in_item} == {final.output[0].id}
    assert all(event.output_index == 0 and getattr(event, "content_index", 0) == 0 for event in in_item)
    text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == final.output_text == ask(client).output_text
    assert final.usage.output_tokens == 12


def test_the_stream_helper_is_content(client: OpenAI) -> None:
    with client.responses.stream(model="fake", input="hello", temperature=0) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert (
        final.status == "completed"
        and final.output_text
        == ask(client, "hello", max_output_tokens=None, extra_body={"ignore_eos": False}).output_text
    )
    assert not snapshots or snapshots[-1] == final.output_text


async def test_the_async_client_is_content(server: RunningServer) -> None:
    async with server.async_client() as client:
        create: Any = client.responses.create
        whole = await create(model="fake", input=QUESTION, temperature=0, max_output_tokens=12, extra_body=SAYING)
        async with client.responses.stream(model="fake", input="hello", previous_response_id=whole.id) as stream:
            kinds = [event.type async for event in stream]
        assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
        assert (await client.responses.retrieve(whole.id)).output_text == whole.output_text
        listed = await client.responses.input_items.list(whole.id)
        assert [item.type async for item in listed] == ["message"]
        await client.responses.delete(whole.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(whole.id)


def test_a_stream_that_fails_says_so_and_ends(serve: Serve) -> None:
    server = serve(max_completion_time_s=0.3)
    with server.client() as client:
        stream: Any = ask(client, stream=True, max_output_tokens=None)
        kinds = []
        with server.engine_held():
            for event in stream:
                kinds.append(event.type)
        assert kinds[-1] == "response.failed" and event.response.status == "failed"
        assert event.response.error.code == "server_error" and event.response.id
        assert refusal_of_retrieval(client, event.response.id) == 404
    server.expect_idle()


def refusal_of_retrieval(client: OpenAI, response_id: str) -> int:
    with pytest.raises(openai.APIStatusError) as refused:
        client.responses.retrieve(response_id)
    return refused.value.status_code


def test_a_client_that_leaves_ends_what_runs(server: RunningServer, client: OpenAI) -> None:
    stream: Any = ask(client, stream=True, max_output_tokens=None)
    next(iter(stream))
    stream.close()
    server.expect_idle()
