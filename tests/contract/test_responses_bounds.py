"""How much is stored and how long a conversation can be: what is left out, and what is refused, naming what to do."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.contract.conftest import Serve
from tests.contract.test_responses_contract import ask, refusal
from tests.contract.test_responses_stored import recomputed

# -- truncation --


@pytest.fixture
def narrow(serve: Serve) -> Iterator[OpenAI]:
    with serve(engine={"max_model_len": 400}).client() as connected:
        yield connected


def test_a_conversation_that_grows_too_long_is_refused_or_truncated(narrow: OpenAI) -> None:
    system: list[Any] = [{"role": "system", "content": "Be brief."}]
    response = ask(narrow, [*system, {"role": "user", "content": "Question 0?"}])
    while True:
        try:
            response = ask(narrow, "Another question of some length?", previous_response_id=response.id)
        except openai.BadRequestError as error:
            assert (error.code, error.param) == ("context_length_exceeded", "input")
            break
    reused = []
    for number in range(12):
        question = f"Question {number}, and some more?"
        response = ask(narrow, question, previous_response_id=response.id, truncation="auto")
        assert response.usage is not None and response.usage.input_tokens + 12 <= 400
        reused.append(recomputed(response, question) <= 1)
    assert sum(reused) >= 6, "the cut moves with every turn"


def test_what_was_truncated_is_said_in_a_comparison(narrow: OpenAI) -> None:
    response = ask(narrow, "Question 0?")
    for _ in range(8):
        last, response = response, ask(narrow, "word " * 12, previous_response_id=response.id, truncation="auto")
    options = {"comparison_response_id": last.id}
    reasons = set()
    for _ in range(6):
        response = ask(
            narrow, "word " * 12, previous_response_id=response.id, truncation="auto", prompt_cache_options=options
        )
        diagnostics: Any = response.prompt_cache_diagnostics
        reasons.add(getattr(diagnostics, "reason", None))
        options = {"comparison_response_id": response.id}
    assert "context_compacted" in reasons


# -- bounds --


def test_a_tenant_stores_so_many_at_most(serve: Serve) -> None:
    server = serve(max_stored_responses=3)
    with server.client() as client:
        stored = [ask(client, max_output_tokens=1) for _ in range(5)]
        for response in stored[:2]:
            with pytest.raises(openai.NotFoundError):
                client.responses.retrieve(response.id)
        assert [client.responses.retrieve(response.id).id for response in stored[2:]] == [r.id for r in stored[2:]]


def test_what_is_too_large_to_store_is_refused_before_anything_is_computed(serve: Serve) -> None:
    server = serve(max_stored_bytes=2000)
    with server.client() as client:
        before = server.stats().prompt_tokens
        error = refusal(client, openai.BadRequestError, given="x" * 2000)
        assert (error.code, error.param) == ("input_too_large_to_store", "input")
        assert server.stats().prompt_tokens == before
        assert ask(client, "x" * 2000, store=False).output_text
        conversation = client.conversations.create()
        with pytest.raises(openai.BadRequestError) as full:
            for _ in range(9):
                client.conversations.items.create(conversation.id, items=[{"role": "user", "content": "x" * 300}])
        assert full.value.code == "conversation_too_large"


@pytest.mark.parametrize("kind", ["conversation", "previous_response_id"])
def test_more_messages_than_a_prompt_may_have_are_refused_or_truncated(serve: Serve, kind: str) -> None:
    """A conversation does not end with them: the client is told how to go on."""
    server = serve(max_messages=20)
    with server.client() as client:
        conversation = client.conversations.create()
        place: dict[str, Any] = {"conversation": conversation.id} if kind == "conversation" else {}
        for _ in range(9):
            response = ask(client, max_output_tokens=1, **place)
            place = place if kind == "conversation" else {kind: response.id}
        ask(client, max_output_tokens=1, **place)
        response = ask(client, max_output_tokens=1, store=True, truncation="auto", **place)
        place = place if kind == "conversation" else {kind: response.id}
        before = server.stats().prompt_tokens
        error = refusal(client, openai.BadRequestError, **place)
        assert (error.code, error.param) == ("context_length_exceeded", "input")
        assert "'truncation': 'auto'" in error.message
        assert server.stats().prompt_tokens == before
        sizes = []
        for _ in range(12):
            response = ask(client, max_output_tokens=1, truncation="auto", **place)
            place = place if kind == "conversation" else {kind: response.id}
            assert response.usage is not None
            sizes.append(response.usage.input_tokens)
        assert max(sizes) < 2 * min(sizes), "the prompt does not grow"
        count = client.responses.input_tokens.count(model="fake", input="?", truncation="auto", **place)
        assert count.input_tokens <= max(sizes)


def test_a_conversation_that_is_full_refuses_a_turn_before_anything_is_computed(serve: Serve) -> None:
    server = serve(max_stored_bytes=4000)
    with server.client() as client:
        item: Any = {"role": "user", "content": "x" * 3300}
        conversation = client.conversations.create(items=[item])
        before = server.stats().prompt_tokens
        error = refusal(client, openai.BadRequestError, conversation=conversation.id)
        assert (error.code, error.param) == ("conversation_too_large", "conversation")
        assert "begin a new one" in error.message
        assert server.stats().prompt_tokens == before
        [kept] = client.conversations.items.list(conversation.id)
        client.conversations.items.delete(str(kept.id), conversation_id=conversation.id)
        assert ask(client, conversation=conversation.id).output_text


def test_a_server_that_stores_nothing_answers_all_the_same(serve: Serve) -> None:
    server = serve(response_ttl_s=0)
    with server.client() as client:
        response = ask(client)
        assert response.store is False and response.output_text  # type: ignore[attr-defined]
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)
        with pytest.raises(openai.BadRequestError) as refused:
            client.conversations.create()
        assert refused.value.code == "store_disabled"
