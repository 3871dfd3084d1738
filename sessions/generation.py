"""Generation: the engine outputs of one request, all its prompts and choices, as a stream of Delta. Event loop only."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

from sessions.detokenizer import TextStream
from sessions.engine.request import RequestOutput, TokenScore
from sessions.errors import SessionError
from sessions.logprobs import LogprobStream
from sessions.reply_parser import ReplyParser, ReplyPiece
from sessions.reports import Delta, PromptReport, TokenLogprob, Usage
from sessions.transcripts import Said
from sessions.types import FinishReason, RequestId


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that is said again. num_hidden: leading tokens that are not of its text."""

    text: str
    token_ids: tuple[int, ...]
    num_hidden: int = 0


@dataclass(slots=True)
class PromptUse:
    """A prompt and what was found of it. write_limit: tokens that are kept at most; None is all.

    num_cached, num_restored: of the first choice that ran; the others find all of it in the pool.
    scored_by: index of the choice that scores it for all of its choices. scores: its, once they are known.
    """

    num_tokens: int
    write_limit: int | None = None
    num_cached: int | None = None
    num_restored: int = 0
    scored_by: int | None = None
    scores: tuple[TokenScore, ...] | None = None

    @property
    def awaits_scores(self) -> bool:
        return self.scored_by is not None and self.scores is None

    @property
    def num_written(self) -> int:
        if self.num_cached is None:
            return 0
        kept = self.num_tokens if self.write_limit is None else self.write_limit
        return max(0, kept - self.num_cached)


@dataclass(slots=True)
class Choice:
    index: int
    prompt: PromptUse
    stream: TextStream
    said: Said
    logprobs: LogprobStream | None = None
    """None where nobody asked for any."""
    echo: Echo | None = None
    """To be said before anything else."""
    held: list[RequestOutput] = field(default_factory=list)
    """What came before its prompt's scores did."""
    is_finished: bool = False
    prediction: tuple[int, int] = (0, 0)
    """Tokens of the request's prediction that were right, and wrong."""
    parser: ReplyParser | None = None
    """None where all of the text is content."""
    num_reasoning_tokens: int = 0


class Generation:
    """The reply to one request: an async iterator of Delta over all its choices. Event loop only.

    Iterating raises what ended a choice without a reply: EngineFailed if the engine lost it. `close()` is synchronous
    and idempotent: it aborts what still runs and frees its blocks within a step.
    """

    def __init__(
        self,
        generation_id: str,
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
        self._choices = choices
        self._abort = abort
        self._forget = forget
        self._remember = remember
        self._arrived_at = time.monotonic()
        self._deltas: deque[Delta] = deque()
        self._ready = asyncio.Event()
        self._error: SessionError | None = None
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
                raise self._error
            if self._is_closed or all(choice.is_finished for choice in self._choices.values()):
                return

    def usage(self) -> Usage:
        """Final once iteration ended; prompt counts are known from the first delta on."""
        prompts = {id(choice.prompt): choice.prompt for choice in self._choices.values()}.values()
        completion = sum(choice.stream.num_tokens_used for choice in self._choices.values())
        accepted = sum(choice.prediction[0] for choice in self._choices.values())
        rejected = sum(choice.prediction[1] for choice in self._choices.values())
        return Usage(
            sum(prompt.num_tokens for prompt in prompts),
            completion,
            sum(prompt.num_cached or 0 for prompt in prompts),
            sum(prompt.num_written for prompt in prompts),
            accepted,
            rejected,
            restored_tokens=sum(prompt.num_restored for prompt in prompts),
            reasoning_tokens=sum(choice.num_reasoning_tokens for choice in self._choices.values()),
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
        if not choice.prompt.awaits_scores:
            self._take(choice, output)
        elif choice.index != choice.prompt.scored_by:
            choice.held.append(output)
        else:
            choice.prompt.scores = output.prompt_scores
            self._take(choice, output)
            self._take_held(choice.prompt)
        self._ready.set()

    def _take_held(self, prompt: PromptUse) -> None:
        """Its scores are known: go on with its other choices."""
        for choice in self._choices.values():
            if choice.prompt is prompt:
                for output in choice.held:
                    self._take(choice, output)
                choice.held.clear()

    def _take(self, choice: Choice, output: RequestOutput) -> None:
        if choice.prompt.num_cached is None:
            choice.prompt.num_cached = output.num_cached_tokens
            choice.prompt.num_restored = output.num_restored_tokens
        if self.queue_time_s is None and output.admitted_at is not None:
            self.queue_time_s = output.admitted_at - self._arrived_at
        if choice.echo is not None:
            logprobs = _echo_logprobs(choice, choice.echo)
            self._deltas.append(Delta(choice.index, choice.echo.text, logprobs=logprobs))
            choice.echo = None
        choice.prediction = output.prediction
        self._push(choice, output)

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
        pieces, finish_reason = _parsed(choice, text, finish_reason, choice.stream.num_tokens_used - num_used)
        if finish_reason is not None and output.finish_reason is None and not choice.stream.stopped:
            self._abort(output.request_id)
        choice.said.told += pieces
        choice.is_finished = finish_reason is not None
        if choice.is_finished:  # before the client has the end: its next turn may be here at once
            self._remember(choice)
        logprobs = _logprobs(choice)
        deltas = [Delta(choice.index, p.text, None, p.reasoning, tuple(p.calls)) for p in pieces]
        if deltas or finish_reason or logprobs:
            first, *rest = deltas or [Delta(choice.index, "")]
            deltas = [replace(first, logprobs=logprobs), *rest]
            self._deltas += [*deltas[:-1], replace(deltas[-1], finish_reason=finish_reason)]


def _parsed(
    choice: Choice, text: str, finish_reason: FinishReason | None, num_tokens: int
) -> tuple[list[ReplyPiece], FinishReason | None]:
    """What the step says, and why the reply is over: also because it made all the calls it may."""
    parser = choice.parser
    if parser is None:
        return [ReplyPiece(text)] if text else [], finish_reason
    was_thinking = parser.is_thinking
    pieces = parser.decode(text)
    if finish_reason is not None:
        pieces += parser.flush()
    if was_thinking or parser.is_thinking:
        choice.num_reasoning_tokens += num_tokens
    if parser.num_calls and (parser.is_done or finish_reason == "stop"):
        finish_reason = "tool_calls"
    return pieces, finish_reason


def _echo_logprobs(choice: Choice, echo: Echo) -> tuple[TokenLogprob, ...]:
    """Of the prompt's own tokens."""
    if choice.logprobs is None:
        return ()
    return choice.logprobs.of_prompt(echo.token_ids, choice.prompt.scores or ())[echo.num_hidden :]


def _text(choice: Choice, output: RequestOutput) -> str:
    """What the step's tokens let out; notes their scores beside it."""
    stream, logprobs = choice.stream, choice.logprobs
    if logprobs is None:
        return stream.decode(output.token_ids)
    ends_at = len(output.token_ids) - 1 if output.ends_with_eos else None  # a token that only ends: not shown
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
