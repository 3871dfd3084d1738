"""Deltas into server-sent events: `data: {...}` each, `data: [DONE]` at the end, `: keep-alive` in silence.

    role chunk per choice │ content chunks … finish chunk per choice │ usage chunk, if asked │ [DONE]
    an error after the 200:          {"error": {...}} │ [DONE]

Strings in deltas are concatenated by clients, so the role is sent once per choice, and choice k's first chunk
before k+1's. After the first byte no exception may leave the generator: the server would cut the connection
in the middle of a chunk.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from msgspec import UNSET, UnsetType

from proxy.answer_schemas import (
    AnaphoraReport,
    AnswerHead,
    ChatCompletionChunk,
    ChunkChoice,
    ChunkDelta,
    CompletionUsage,
)
from proxy.errors import ErrorAnswer, internal_error_answer, log_unexpected, session_error_answer
from proxy.logprob_schemas import ChoiceLogprobs
from proxy.reply import Reply
from proxy.schemas import ENCODER
from proxy.tools import call_pieces
from sessions.errors import SessionError
from sessions.reports import Delta

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
MEDIA_TYPE = "text/event-stream"

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


class EventWriter(Protocol):
    """What one kind of answer makes of deltas."""

    def opening(self, n: int) -> bytes:
        """Events before the first delta of `n` choices, maybe none."""

    def deltas(self, batch: Sequence[Delta]) -> bytes: ...

    def usage(self, usage: CompletionUsage) -> bytes: ...


class ChunkWriter:
    """Encodes chunks that share a head. Pure.

    may_call: contents begin as null, and stay it where nothing but calls follows.
    """

    def __init__(
        self,
        head: AnswerHead,
        service_tier: str | UnsetType = UNSET,
        report: AnaphoraReport | UnsetType = UNSET,
        *,
        may_call: bool = False,
    ) -> None:
        self._head = head._asdict()
        self._service_tier = service_tier
        self._report = report
        self._may_call = may_call

    def opening(self, n: int) -> bytes:
        """Choices open in order; the first chunk has the report, which is known before the first token is."""
        opening = ChunkDelta(role="assistant", content=None if self._may_call else "")
        first = self._event([ChunkChoice(index=0, delta=opening)], report=self._report)
        return first + b"".join(self._choice(index, opening) for index in range(1, n))

    def deltas(self, batch: Sequence[Delta]) -> bytes:
        """A chunk for each delta that says something; a finish reason is a chunk of its own, with an empty delta."""
        events = []
        for delta in batch:
            if delta.text or delta.reasoning or delta.tool_calls or delta.logprobs:
                logprobs = ChoiceLogprobs.of(delta.logprobs) if delta.logprobs else None
                events.append(self._choice(delta.choice, _chunk_delta(delta), logprobs=logprobs))
            if delta.finish_reason is not None:
                events.append(self._choice(delta.choice, ChunkDelta(), delta.finish_reason))
        return b"".join(events)

    def usage(self, usage: CompletionUsage) -> bytes:
        return self._event([], usage)

    def _choice(
        self,
        index: int,
        delta: ChunkDelta,
        finish_reason: str | None = None,
        logprobs: ChoiceLogprobs | None = None,
    ) -> bytes:
        return self._event([ChunkChoice(index=index, delta=delta, finish_reason=finish_reason, logprobs=logprobs)])

    def _event(
        self,
        choices: list[ChunkChoice],
        usage: CompletionUsage | None = None,
        report: AnaphoraReport | UnsetType = UNSET,
    ) -> bytes:
        chunk = ChatCompletionChunk(
            **self._head,
            choices=choices,
            usage=usage,
            service_tier=self._service_tier,
            anaphora=report,
        )
        return b"data: " + ENCODER.encode(chunk) + b"\n\n"


def _chunk_delta(delta: Delta) -> ChunkDelta:
    return ChunkDelta(
        content=UNSET if not delta.text and (delta.reasoning or delta.tool_calls) else delta.text,
        reasoning_content=delta.reasoning or UNSET,
        tool_calls=call_pieces(delta.tool_calls) or UNSET,
    )


def error_event(answer: ErrorAnswer) -> bytes:
    return b"data: " + ENCODER.encode(answer.body()) + b"\n\n"


async def frames(
    reply: Reply, writer: EventWriter, *, n: int, include_usage: bool, request_id: str
) -> AsyncIterator[bytes]:
    """The body of a streamed answer. Never raises; closes the reply however it ends."""
    try:
        if opening := writer.opening(n):
            yield opening
        async for batch in reply.batches():
            events = writer.deltas(batch)
            if events or not batch:
                yield events or KEEP_ALIVE
        ending = writer.usage(CompletionUsage.of(reply.generation.usage())) if include_usage else b""
        yield ending + DONE
    except SessionError as error:
        yield error_event(session_error_answer(error)) + DONE
    except Exception as error:  # noqa: BLE001 - logged; see the module docstring
        log_unexpected(request_id, error)
        yield error_event(internal_error_answer()) + DONE
    finally:
        reply.close()
