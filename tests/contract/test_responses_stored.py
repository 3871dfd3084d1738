"""What is stored, through the official client: continuing, retrieving, forgetting, conversations, and two tenants."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response
from pydantic import SecretStr

from tests.contract.conftest import RunningServer, running
from tests.contract.test_responses_contract import ask, cached, events, refusal

GLUE = "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def new_tokens(question: str) -> int:
    """Tokens of a question and of what the template writes around it, after a reply: one per byte, and four more."""
    glue = GLUE.format(question)
    return len(glue.replace("<|im_end|>", "").replace("<|im_start|>", "")) + glue.count("<|")


def recomputed(response: Response, question: str) -> int:
    """Tokens computed beyond the new ones."""
    assert response.usage is not None
    return response.usage.input_tokens - cached(response) - new_tokens(question)


def texts(items: Any) -> list[str]:
    return [item.content[0].text for item in items]


# -- continuing --


def test_ten_turns_recompute_one_token_each_at_most(client: OpenAI) -> None:
    response = ask(client, "Question 0?", temperature=1)
    for number in range(1, 10):
        question = f"Question {number}?"
        response = ask(client, question, temperature=1, previous_response_id=response.id)
        assert recomputed(response, question) <= 1
        assert response.anaphora["spliced_messages"] == number  # type: ignore[attr-defined]


def test_ten_turns_of_a_conversation_recompute_one_token_each_at_most(client: OpenAI) -> None:
    conversation = client.conversations.create(metadata={"topic": "x"})
    for number in range(10):
        question = f"Question {number}?"
        response = ask(client, question, temperature=1, conversation=conversation.id, store=False)
        assert number == 0 or recomputed(response, question) <= 1
        assert response.conversation is not None and response.conversation.id == conversation.id
    items = list(client.conversations.items.list(conversation.id, order="asc", limit=7))
    assert [item.role for item in items] == ["user", "assistant"] * 10  # type: ignore[union-attr]


def test_streamed_and_whole_turns_continue_each_other(client: OpenAI) -> None:
    first = events(client, "One?")[-1].response
    second = ask(client, "Two?", previous_response_id=first.id)
    assert recomputed(second, "Two?") <= 1
    third = events(client, "Three?", previous_response_id=second.id)[-1].response
    assert recomputed(third, "Three?") <= 1


def test_instructions_are_not_carried_over(client: OpenAI) -> None:
    first = ask(client, "One?", instructions="Be brief.")
    second = ask(client, "Two?", previous_response_id=first.id)
    assert second.instructions is None
    alone: list[Any] = [
        {"role": "user", "content": "One?"},
        first.output[0].to_dict(),
        {"role": "user", "content": "Two?"},
    ]
    assert second.output_text == ask(client, alone).output_text
    again = ask(client, "Two?", previous_response_id=first.id, instructions="Be brief.")
    assert recomputed(again, "Two?") <= 1


def test_a_branch_leaves_the_other_as_it_was(client: OpenAI) -> None:
    first = ask(client, "One?")
    left, right = (ask(client, text, previous_response_id=first.id) for text in ("Left?", "Right, and longer?"))
    assert recomputed(left, "Left?") <= 1 and recomputed(right, "Right, and longer?") <= 1
    assert recomputed(ask(client, "On?", previous_response_id=left.id), "On?") <= 1


def test_items_can_be_referred_to(client: OpenAI) -> None:
    first = ask(client, "One?")
    [question] = client.responses.input_items.list(first.id).data
    references: list[Any] = [
        {"type": "item_reference", "id": question.id},
        {"id": first.output[0].id},
        {"role": "user", "content": "Two?"},
    ]
    assert ask(client, references).output_text == ask(client, "Two?", previous_response_id=first.id).output_text
    error = refusal(client, openai.NotFoundError, given=[{"type": "item_reference", "id": "msg_1"}])
    assert (error.code, error.param) == ("item_not_found", "input")


def test_what_was_not_to_be_stored_is_not(client: OpenAI) -> None:
    response = ask(client, store=False)
    assert response.store is False  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.retrieve(response.id)
    assert missing.value.code == "response_not_found"
    error = refusal(client, openai.NotFoundError, previous_response_id=response.id)
    assert (error.code, error.param) == ("previous_response_not_found", "previous_response_id")


# -- retrieving and forgetting --


def test_a_response_is_retrieved_as_it_was_sent(client: OpenAI) -> None:
    response = ask(client, metadata={"k": "v"})
    assert response.store is True  # type: ignore[attr-defined]
    assert client.responses.retrieve(response.id).to_dict() == response.to_dict()


def test_input_items_come_in_pages(client: OpenAI) -> None:
    inputs: list[Any] = [{"role": "user", "content": str(number)} for number in range(5)]
    response = ask(client, inputs)
    page = client.responses.input_items.list(response.id, limit=2)
    assert texts(page.data) == ["4", "3"] and page.has_more
    assert texts(client.responses.input_items.list(response.id, order="asc", limit=2)) == list("01234")
    last = client.responses.input_items.list(response.id, order="asc", limit=2, after=page.data[1].id)
    assert texts(last.data) == ["4"] and last.has_more is False
    for bad in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "msg_none"}):
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.input_items.list(response.id, **bad)  # type: ignore[arg-type]
        assert refused.value.param == next(iter(bad))


def test_what_is_forgotten_cannot_be_continued(client: OpenAI) -> None:
    first = ask(client, "One?")
    second = ask(client, "Two?", previous_response_id=first.id)
    assert client.responses.delete(first.id) is None  # type: ignore[func-returns-value]
    error = refusal(client, openai.NotFoundError, previous_response_id=second.id)
    assert first.id in error.message
    assert client.responses.retrieve(second.id).id == second.id
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(first.id)


def test_nothing_runs_in_the_background(client: OpenAI) -> None:
    response = ask(client)
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel("resp_none")
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.retrieve(response.id, stream=True)
    assert refused.value.param == "stream"


def test_input_tokens_are_those_of_the_prompt(client: OpenAI) -> None:
    first = ask(client, "One?")
    counted = client.responses.input_tokens.count(model="fake", input="Two?", previous_response_id=first.id)
    second = ask(client, "Two?", previous_response_id=first.id)
    assert second.usage is not None and counted.input_tokens == second.usage.input_tokens


def test_the_body_of_a_response_is_counted_as_it_is(client: OpenAI) -> None:
    """Options of a generation change no count, and are checked."""
    asked: dict[str, Any] = {"model": "fake", "input": "How many?", "instructions": "Count."}
    options: dict[str, Any] = {"temperature": 1, "top_p": 0.5, "max_output_tokens": 3, "seed": 1, "stream": False}
    counted = client.post("/responses/input_tokens", body=asked | options, cast_to=dict[str, Any])
    usage = client.responses.create(**asked, max_output_tokens=1).usage
    assert usage is not None and counted["input_tokens"] == usage.input_tokens
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/responses/input_tokens", body=asked | {"temperature": 3}, cast_to=dict[str, Any])
    assert refused.value.param == "temperature"


# -- conversations --


def test_the_life_of_a_conversation(client: OpenAI) -> None:
    begun: list[Any] = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "One?"}]
    conversation = client.conversations.create(items=begun, metadata={"a": "b"})
    assert client.conversations.retrieve(conversation.id).metadata == {"a": "b"}
    assert client.conversations.update(conversation.id, metadata={"c": "d"}).metadata == {"c": "d"}
    answered = ask(client, None, conversation=conversation.id)
    added = client.conversations.items.create(conversation.id, items=[{"role": "user", "content": "Two?"}])
    assert texts(added.data) == ["Two?"]
    ids = [item.id for item in client.conversations.items.list(conversation.id, order="asc")]
    assert len(set(ids)) == 4 and ids[2] == answered.output[0].id and ids[3] == added.first_id
    assert client.conversations.items.retrieve(ids[1], conversation_id=conversation.id).id == ids[1]  # type: ignore[union-attr]
    client.conversations.items.delete(ids[1], conversation_id=conversation.id)
    assert [item.id for item in client.conversations.items.list(conversation.id)] == [ids[3], ids[2], ids[0]]
    for missing in (ids[1], "msg_none"):
        with pytest.raises(openai.NotFoundError):
            client.conversations.items.delete(missing, conversation_id=conversation.id)
    with pytest.raises(openai.NotFoundError) as unknown:
        client.conversations.items.create(conversation.id, items=[{"type": "item_reference", "id": "msg_none"}])
    assert unknown.value.param == "items"
    assert client.conversations.delete(conversation.id).deleted
    error = refusal(client, openai.NotFoundError, conversation=conversation.id)
    assert (error.code, error.param) == ("conversation_not_found", "conversation")


def test_a_response_of_a_conversation_is_continued_there(client: OpenAI) -> None:
    conversation = client.conversations.create()
    response = ask(client, conversation={"id": conversation.id})
    assert refusal(client, openai.BadRequestError, previous_response_id=response.id).param == "previous_response_id"
    error = refusal(client, openai.BadRequestError, previous_response_id=response.id, conversation=conversation.id)
    assert error.param == "previous_response_id"


# -- the cache --


def test_prewarming_computes_the_prompt_and_says_nothing(client: OpenAI) -> None:
    system: list[Any] = [{"role": "system", "content": "You are the assistant of a library. " * 6}]
    warmed = ask(client, system, prompt_cache_options={"prewarm": True})
    assert (warmed.status, warmed.output) == ("completed", [])
    assert warmed.usage is not None and warmed.usage.output_tokens == 0
    assert warmed.usage.input_tokens_details.cache_write_tokens > 200
    following = ask(client, "Where?", previous_response_id=warmed.id)
    assert cached(following) == warmed.usage.input_tokens
    kinds = [event.type for event in events(client, system, prompt_cache_options={"prewarm": True})]
    assert kinds == ["response.created", "response.in_progress", "response.completed"]


def compare(client: OpenAI, with_id: str, given: Any, **parameters: Any) -> Any:
    options = {"comparison_response_id": with_id}
    response = ask(client, given, prompt_cache_options=options, **parameters)
    assert response.prompt_cache_options is not None
    assert response.prompt_cache_options.comparison_response_id == with_id
    return response.prompt_cache_diagnostics


def test_a_comparison_says_where_prompts_part(client: OpenAI) -> None:
    system = "It is 12:00. " + "You are the assistant of a library. " * 4
    first = ask(client, "One?", instructions=system)
    hit = compare(client, first.id, "Two?", instructions=system, previous_response_id=first.id)
    assert hit.type == "cache_hit"
    later = system.replace("12:00", "12:01")
    miss = compare(client, first.id, "One?", instructions=later)
    assert (miss.type, miss.reason) == ("cache_miss", "input_changed")
    assert first.usage is not None
    assert miss.comparison_reusable_tokens == len("system\n" + "It is 12:0") + 1
    assert miss.cache_missed_tokens == first.usage.input_tokens - miss.comparison_reusable_tokens
    assert compare(client, "resp_none", "One?").type == "comparison_response_not_found"
    assert ask(client, "One?").prompt_cache_diagnostics is None


def test_a_comparison_with_what_is_gone_from_the_cache_is_unavailable(client: OpenAI) -> None:
    first = ask(client, "A question that is dropped?")
    client.delete("/cache", cast_to=dict[str, Any])
    assert compare(client, first.id, "On?", previous_response_id=first.id).type == "unavailable"


def test_an_explanation_comes_on_request(client: OpenAI) -> None:
    response = ask(client, extra_body={"anaphora": {"explain": True}})
    assert response.anaphora["cache"]["class"]  # type: ignore[attr-defined]


# -- two tenants --


@pytest.fixture(scope="module")
def tenants() -> Iterator[tuple[OpenAI, OpenAI, RunningServer]]:
    keys = SecretStr("alice=sk-alice,bob=sk-bob")
    with (
        running(None, api_keys=keys) as server,
        server.client(api_key="sk-alice") as alice,
        server.client(api_key="sk-bob") as bob,
    ):
        yield alice, bob, server


def test_what_one_tenant_stored_is_unknown_to_another(tenants: tuple[OpenAI, OpenAI, RunningServer]) -> None:
    alice, bob, _ = tenants
    response, conversation = ask(alice), alice.conversations.create()
    reference: Any = [{"type": "item_reference", "id": response.output[0].id}]
    attempts: list[Any] = [
        lambda: bob.responses.retrieve(response.id),
        lambda: bob.responses.delete(response.id),
        lambda: bob.responses.cancel(response.id),
        lambda: bob.responses.input_items.list(response.id),
        lambda: ask(bob, previous_response_id=response.id),
        lambda: ask(bob, reference),
        lambda: ask(bob, conversation=conversation.id),
        lambda: bob.conversations.retrieve(conversation.id),
        lambda: bob.conversations.update(conversation.id, metadata={"a": "b"}),
        lambda: bob.conversations.delete(conversation.id),
        lambda: bob.conversations.items.list(conversation.id),
        lambda: bob.conversations.items.create(conversation.id, items=[{"role": "user", "content": "x"}]),
    ]
    for attempt in attempts:
        with pytest.raises(openai.NotFoundError):
            attempt()
    compared: Any = ask(bob, prompt_cache_options={"comparison_response_id": response.id}).prompt_cache_diagnostics
    assert compared.type == "comparison_response_not_found"
    assert alice.responses.retrieve(response.id).id == response.id
    assert alice.conversations.retrieve(conversation.id).metadata == {}
