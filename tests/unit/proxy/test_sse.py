"""Chunks and error answers as bytes."""

import json
from typing import Any

import pytest

from proxy.answer_schemas import AnswerHead, CompletionUsage
from proxy.errors import CompletionTimeout, session_error_answer
from proxy.sse import ChunkWriter, error_event
from sessions.errors import (
    ContextLengthExceeded,
    Draining,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    SessionError,
)
from sessions.reports import Delta, Usage

WRITER = ChunkWriter(AnswerHead("chatcmpl-1", 7, "m", "fp_1"))


def events(data: bytes) -> list[dict[str, Any]]:
    *parts, rest = data.split(b"\n\n")
    assert rest == b""
    assert all(part.startswith(b"data: ") and b"\n" not in part for part in parts)
    return [json.loads(part[6:]) for part in parts]


def test_roles_come_once_per_choice_in_order() -> None:
    chunks = events(WRITER.opening(2))
    assert [chunk["choices"][0]["index"] for chunk in chunks] == [0, 1]
    assert all(chunk["choices"][0]["delta"] == {"role": "assistant", "content": ""} for chunk in chunks)


def test_a_chunk_s_shape() -> None:
    [chunk] = events(WRITER.deltas([Delta(0, "a\n\n\u2028 é")]))
    assert chunk == {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 7,
        "model": "m",
        "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "delta": {"content": "a\n\n\u2028 é"}, "finish_reason": None, "logprobs": None}],
        "usage": None,
    }


def test_a_finish_reason_is_a_chunk_of_its_own_and_empty_text_is_none() -> None:
    chunks = events(WRITER.deltas([Delta(1, "x", "stop"), Delta(0, "", "length"), Delta(0, "")]))
    assert [(chunk["choices"][0]["delta"], chunk["choices"][0]["finish_reason"]) for chunk in chunks] == [
        ({"content": "x"}, None),
        ({}, "stop"),
        ({}, "length"),
    ]


def test_usage_stands_alone() -> None:
    [chunk] = events(WRITER.usage(CompletionUsage.of(Usage(10, 4, 7, 3))))
    assert chunk["choices"] == []
    assert chunk["usage"]["total_tokens"] == 14
    assert chunk["usage"]["prompt_tokens_details"] == {"cached_tokens": 7, "cache_write_tokens": 3, "audio_tokens": 0}


@pytest.mark.parametrize(
    ("error", "status", "code", "headers"),
    [
        (InvalidRequest("no", param="p", code="c"), 400, "c", {}),
        (
            ContextLengthExceeded(num_prompt_tokens=9, max_model_len=8),
            400,
            "context_length_exceeded",
            {},
        ),
        (ModelNotFound("m"), 404, "model_not_found", {}),
        (Overloaded("full", retry_after_s=2.1), 429, "rate_limit_exceeded", {"Retry-After": "3"}),
        (Overloaded("full", retry_after_s=0.01), 429, "rate_limit_exceeded", {"Retry-After": "1"}),
        (Draining(), 503, "shutting_down", {"Retry-After": "5"}),
        (EngineFailed("tensor of the prompt"), 500, "engine_failed", {}),
        (CompletionTimeout(600), 504, "completion_timeout", {"x-should-retry": "false"}),
        (SessionError("prompt"), 500, "internal_error", {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, SessionError) else None,
)
def test_the_table_of_errors(error: SessionError, status: int, code: str, headers: dict[str, str]) -> None:
    answer = session_error_answer(error)
    assert (answer.status, answer.code, dict(answer.headers)) == (status, code, headers)
    [event] = events(error_event(answer))
    assert set(event["error"]) == {"message", "type", "param", "code"}
    assert "prompt" not in answer.message or isinstance(error, ContextLengthExceeded)
