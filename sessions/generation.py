"""Generation: the engine outputs of one chat request, as a stream of Delta. Event loop only."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from sessions.detokenizer import TextStream
from sessions.engine.request import RequestOutput
from sessions.errors import EngineFailed
from sessions.logprobs import LogprobStream
from sessions.replies import Said
from sessions.types import Delta, FinishReason, PromptReport, RequestId, TokenLogprob, Usage


@dataclass(slots=True)
class Choice:
    index: int
    stream: TextStream
    said: Said
    logprobs: LogprobStream | None = None
    """None where nobody asked for any."""
    is_finished: bool = False
    prediction: tuple[int, int] = (0, 0)
    """Tokens of the request's prediction that were right, and wrong."""


class Generation:
    """The reply to one chat request: an async iterator of Delta over all its choices. Event loop only.

    Iterating raises EngineFailed if the engine loses the request. `close()` is synchronous and idempotent: it aborts
    what still runs and frees its blocks within a step.
    """

    def __init__(
        self,
        generation_id: str,
        num_prompt_tokens: int,
        choices: dict[RequestId, Choice],
        abort: Callable[[RequestId], None],
        forget: Callable[[Sequence[RequestId]], None],
        remember: Callable[[Choice], None],
        report: PromptReport,
    ) -> None:
        self.id = generation_id
        self.queue_time_s: float | None = None
        """Arrival to first run by the engine; None before the first token."""
        self.report = report
        self.write_limit: int | None = None
        """Prompt tokens that are kept at most; None is all."""
        self._num_prompt_tokens = num_prompt_tokens
        self._choices = choices
        self._abort = abort
        self._forget = forget
        self._remember = remember
        self._arrived_at = time.monotonic()
        self._deltas: deque[Delta] = deque()
        self._ready = asyncio.Event()
        self._error: str | None = None
        self._num_cached: int | None = None
        self._num_restored = 0
        self._is_closed = False

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Delta]:
        while True:
            await self._ready.wait()
            self._ready.clear()
            while self._deltas:
                yield self._deltas.popleft()
            if self._error is not None:
                raise EngineFailed(self._error)
            if self._is_closed or all(choice.is_finished for choice in self._choices.values()):
                return

    def usage(self) -> Usage:
        """Final once iteration ended; prompt counts are known from the first delta on."""
        cached = self._num_cached or 0
        kept = self._num_prompt_tokens if self.write_limit is None else self.write_limit
        computed = max(0, kept - cached) if self._num_cached is not None else 0
        completion = sum(choice.stream.num_tokens_used for choice in self._choices.values())
        accepted = sum(choice.prediction[0] for choice in self._choices.values())
        rejected = sum(choice.prediction[1] for choice in self._choices.values())
        return Usage(
            self._num_prompt_tokens,
            completion,
            cached,
            computed,
            accepted,
            rejected,
            restored_tokens=self._num_restored,
        )

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        for request_id, choice in self._choices.items():
            if not choice.is_finished:
                self._abort(request_id)
                self._remember(choice)
        self._forget(list(self._choices))
        self._ready.set()

    def receive(self, output: RequestOutput) -> None:
        """One step's output for one choice; called by the service."""
        choice = self._choices[output.request_id]
        if choice.is_finished or self._is_closed:
            return
        if output.error is not None:
            self._error = output.error
            self._ready.set()
            return
        if self._num_cached is None:
            # The first choice's prompt; its forks find all of it in the pool.
            self._num_cached = output.num_cached_tokens
            self._num_restored = output.num_restored_tokens
            if output.admitted_at is not None:
                self.queue_time_s = output.admitted_at - self._arrived_at
        choice.prediction = output.prediction
        self._push(choice, output)
        self._ready.set()

    def _push(self, choice: Choice, output: RequestOutput) -> None:
        num_used = choice.stream.num_tokens_used
        text = _text(choice, output)
        choice.said.ids += output.token_ids[: choice.stream.num_tokens_used - num_used]
        finish_reason: FinishReason | None = output.finish_reason
        if choice.stream.stopped:
            if finish_reason is None:
                self._abort(output.request_id)
            finish_reason = "stop"
        elif finish_reason is not None:
            text += choice.stream.flush()
            # A stop string may be complete only in the tail that was held back.
            finish_reason = "stop" if choice.stream.stopped else finish_reason
        choice.said.pieces.append(text)
        choice.is_finished = finish_reason is not None
        if choice.is_finished:  # before the client has the end: its next turn may be here at once
            self._remember(choice)
        logprobs = _logprobs(choice)
        if text or finish_reason or logprobs:
            self._deltas.append(Delta(choice.index, text, finish_reason, logprobs=logprobs))


def _text(choice: Choice, output: RequestOutput) -> str:
    """What the step's tokens let out; notes their scores beside it."""
    stream, logprobs = choice.stream, choice.logprobs
    if logprobs is None:
        return stream.decode(output.token_ids)
    ends_at = len(output.token_ids) - 1 if output.finish_reason == "stop" else None  # a token that only ends: not shown
    pieces = []
    for index, (token_id, score) in enumerate(zip(output.token_ids, output.scores, strict=True)):
        if stream.stopped:
            break
        pieces.append(stream.decode((token_id,)))
        if index != ends_at:
            logprobs.add(score, num_settled=stream.num_settled, is_settled=stream.is_settled)
    return "".join(pieces)


def _logprobs(choice: Choice) -> tuple[TokenLogprob, ...]:
    if choice.logprobs is None:
        return ()
    if choice.is_finished:
        return choice.logprobs.finish(choice.stream.num_shown, is_cut=choice.stream.stopped)
    return choice.logprobs.take(choice.stream.num_shown)
