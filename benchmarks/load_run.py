"""Load on one server: sessions in closed or open loop, and traces replayed. Every request ends as an `Event`."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openai import OpenAIError

from benchmarks.client import BenchmarkFailed, Messages
from benchmarks.scenarios import Prompts, conversation, go_on
from benchmarks.spread import Spread, percentile
from benchmarks.study import Bench
from benchmarks.subject import Sample, new_scope
from benchmarks.traces import TraceRequest

QUESTION_WORDS = 24


@dataclass(frozen=True, slots=True)
class Event:
    """at_s: when it was sent, after the beginning. One of sample and error is set."""

    turn: int
    at_s: float
    sample: Sample | None = None
    error: str = ""


class LoadRun:
    """Sends requests, and notes what came of them. A session whose request fails is over."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._scope = new_scope()
        self._started_at = time.monotonic()
        self.events: list[Event] = []
        self.late_s: list[float] = []
        """How much later than meant requests of an open loop were sent: this side's own fault."""

    async def sessions(self, starts: Sequence[float]) -> None:
        """One session for each start, in seconds from now; all have a system prompt in common."""
        system = self._bench.prompts.text(self._bench.sizes.load_system)
        async with asyncio.TaskGroup() as group:
            for start in starts:
                group.create_task(self._session(start, system))

    async def _session(self, start: float, system: str) -> None:
        prompts, sizes = self._bench.prompts, self._bench.sizes
        await self._until(start)
        messages = conversation(system, prompts.question(QUESTION_WORDS))
        for turn in range(sizes.load_turns):
            sample = await self._ask(messages, sizes.reply, turn)
            if sample is None:
                for _ in range(turn + 1, sizes.load_turns):
                    self._bench.progress.tick()
                return
            messages = go_on(messages, sample.text, prompts.question(QUESTION_WORDS))
            if turn + 1 < sizes.load_turns:
                await asyncio.sleep(self._bench.load.think_time_s)

    async def replay(self, requests: Sequence[TraceRequest], texts: Sequence[str]) -> None:
        """Each at its own time, whoever is still being answered."""
        async with asyncio.TaskGroup() as group:
            for request, text in zip(requests, texts, strict=True):
                group.create_task(self._one(request, text))

    async def _one(self, request: TraceRequest, text: str) -> None:
        await self._until(request.at_s * self._bench.load.time_scale)
        await self._ask([{"role": "user", "content": text}], request.num_output, 0)

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, self._started_at + at_s - time.monotonic()))
        self.late_s.append(max(0.0, time.monotonic() - self._started_at - at_s))

    async def _ask(self, messages: Messages, max_tokens: int, turn: int) -> Sample | None:
        at_s = time.monotonic() - self._started_at
        try:
            sample = await self._bench.subject.ask(messages, max_tokens, self._scope)
        except (OpenAIError, BenchmarkFailed) as error:
            self.events.append(Event(turn, at_s, error=type(error).__name__))
            sample = None
        else:
            self.events.append(Event(turn, at_s, sample))
        self._bench.progress.tick()
        return sample


def poisson_starts(num_sessions: int, sessions_per_s: float, seed: int) -> list[float]:
    """Times of arrival, in seconds; the first at once."""
    generator = random.Random(seed)  # noqa: S311 - repeatable, not secret
    starts = [0.0]
    while len(starts) < num_sessions:
        starts.append(starts[-1] + generator.expovariate(sessions_per_s))
    return starts


def trace_texts(requests: Sequence[TraceRequest], prompts: Prompts, seed: int) -> list[str]:
    """Prompts of the wanted lengths; a hash id is the same words wherever it stands."""
    blocks: dict[tuple[int, int], str] = {}

    def block(identifier: int, num_tokens: int) -> str:
        key = identifier, num_tokens
        if key not in blocks:
            blocks[key] = prompts.again(seed + 1_000_003 * (identifier + 1)).text(num_tokens)
        return blocks[key]

    return [
        " ".join(block(*one) for one in request.blocks()) if request.hash_ids else prompts.text(request.num_input)
        for request in requests
    ]


def summary(run: LoadRun) -> dict[str, Any]:
    """Plain figures of a finished run."""
    done = [event for event in run.events if event.sample is not None]
    samples = [event.sample for event in done if event.sample is not None]
    errors: dict[str, int] = {}
    for event in run.events:
        if event.error:
            errors[event.error] = errors.get(event.error, 0) + 1
    known = {"requests": len(run.events), "errors": errors, "latest_start_ms": 1000 * max(run.late_s, default=0.0)}
    if not samples:
        return known
    wall_s = max(event.at_s + event.sample.total_s for event in done if event.sample is not None)
    gaps_ms = [1000 * gap for sample in samples for gap in sample.gaps_s]
    prompt = sum(sample.num_prompt_tokens for sample in samples)
    says_cached = all(sample.num_cached_tokens is not None for sample in samples)
    turns = sorted({event.turn for event in done})
    return known | {
        "seconds": wall_s,
        "requests_per_s": len(samples) / wall_s,
        "reply_tokens_per_s": sum(sample.num_tokens for sample in samples) / wall_s,
        "prompt_tokens": prompt,
        "cached_share": sum(sample.cached_tokens for sample in samples) / prompt if says_cached else None,
        "ttft_ms": _percentiles([sample.ttft_ms for sample in samples]),
        "itl_ms": _percentiles(gaps_ms) if gaps_ms else None,
        "timeline": [[round(event.at_s, 3), event.sample.ttft_ms, event.turn] for event in done if event.sample],
        "by_turn": [_turn(turn, done) for turn in turns],
    }


def _percentiles(samples: Sequence[float]) -> dict[str, Any]:
    return Spread.of(samples).as_json() | {f"p{percent}": percentile(samples, percent) for percent in (50, 95, 99)}


def _turn(turn: int, done: Sequence[Event]) -> dict[str, Any]:
    samples = [event.sample for event in done if event.turn == turn and event.sample is not None]
    prompt = sum(sample.num_prompt_tokens for sample in samples)
    return {
        "turn": turn,
        "ttft_ms": Spread.of([sample.ttft_ms for sample in samples]).as_json(),
        "cached_share": sum(sample.cached_tokens for sample in samples) / prompt,
    }
