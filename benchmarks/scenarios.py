"""What is asked of a server, and which figures come of it. Every prompt is new to every server; none is sent twice.

cold      one long prompt nobody has seen                          prefill rate, time to first token
warm      the same conversation goes on with a short question      time to first token, by length of what is cached
decode    long replies, prompts cached beforehand                  tokens per second, one stream and eight
sessions  conversations side by side that share a system prompt    throughput, time to first token
stall     a long cold prompt arrives beside running streams        their worst gap, over their usual one
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from itertools import pairwise
from statistics import median, quantiles
from typing import Final

from benchmarks.client import BenchmarkFailed, Client, Messages, Reply
from benchmarks.report import Figure
from benchmarks.words import WordSource

CALIBRATION_WORDS: Final = (100, 900)
QUESTION_WORDS: Final = 8
"""With the template's own tokens around it, a question makes about 20 new tokens."""
SESSION_WORDS: Final = 24
MAX_REPLY: Final = 4_000
"""Longer than a stream of the stall is ever left to run."""

Results = list[tuple[Figure, float]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens unless the name says otherwise."""

    cold: int = 1_000
    cached: tuple[int, ...] = (128, 1_000, 4_096)
    contexts: tuple[int, ...] = (500, 1_000)
    streams: int = 8
    decoded: int = 128
    sessions: int = 8
    turns: int = 6
    system: int = 800
    reply: int = 64
    stalled_streams: int = 4
    stall_context: int = 200
    stall_warm_up: int = 32
    """Pieces each stream has delivered before the long prompt is sent: what "usual" is."""
    stall_prompt: int = 4_000


QUICK: Final = Sizes(
    cold=200,
    cached=(64, 128, 256),
    contexts=(64, 128),
    streams=2,
    decoded=16,
    sessions=2,
    turns=2,
    system=64,
    reply=8,
    stalled_streams=2,
    stall_context=32,
    stall_warm_up=8,
    stall_prompt=300,
)


class Prompts:
    """Messages of a wanted length. The text is in the first message, the system's, so that no prefix is shared."""

    def __init__(self, source: WordSource, tokens_per_word: float, overhead: float) -> None:
        self._source = source
        self._tokens_per_word = tokens_per_word
        self._overhead = overhead

    @classmethod
    async def calibrated(cls, client: Client, seed: int) -> "Prompts":
        """Learn from two prompts' usage how many tokens a word makes here, and the template."""
        source = WordSource(seed)
        short, long = CALIBRATION_WORDS
        counts = []
        for num_words in CALIBRATION_WORDS:
            messages = conversation(source.take(num_words), source.take(QUESTION_WORDS))
            counts.append((await client.ask(messages, 1)).num_prompt_tokens)
        tokens_per_word = (counts[1] - counts[0]) / (long - short)
        return cls(source, tokens_per_word, counts[0] - tokens_per_word * short)

    def again(self, seed: int) -> "Prompts":
        """Of the same calibration, with words of their own."""
        return Prompts(WordSource(seed), self._tokens_per_word, self._overhead)

    def text(self, num_tokens: int) -> str:
        """Words that make nearly so many tokens."""
        return self._source.take(max(1, round(num_tokens / self._tokens_per_word)))

    def draw(self, num_tokens: int) -> Messages:
        """A system message and a question, `num_tokens` in all, nearly."""
        num_words = max(1, round((num_tokens - self._overhead) / self._tokens_per_word))
        return conversation(self._source.take(num_words), self.question())

    def question(self, num_words: int = QUESTION_WORDS) -> str:
        return self._source.take(num_words)


def conversation(system: str, question: str) -> Messages:
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def go_on(messages: Messages, reply: str, question: str) -> Messages:
    return [*messages, {"role": "assistant", "content": reply}, {"role": "user", "content": question}]


async def cold(client: Client, prompts: Prompts, sizes: Sizes) -> Results:
    reply = await client.ask(prompts.draw(sizes.cold), 1)
    name = f"cold prompt, {sizes.cold} tokens"
    return [
        (Figure(f"{name}: prefill", "tokens/s", "rate"), reply.num_prompt_tokens / reply.time_to_first_token_s),
        (Figure(f"{name}: TTFT", "ms"), 1000 * reply.time_to_first_token_s),
    ]


async def warm(client: Client, prompts: Prompts, sizes: Sizes) -> Results:
    """A reply of a few tokens, then the next question: the prefix is the conversation, not a copy of the request."""
    results: Results = []
    seconds = []
    for length in sizes.cached:
        messages = prompts.draw(length)
        first = await client.ask(messages, 4)
        reply = await client.ask(go_on(messages, first.text, prompts.question()), 1)
        name = f"warm turn, {length} cached"
        seconds.append(reply.time_to_first_token_s)
        results.append((Figure(f"{name}: TTFT", "ms"), 1000 * reply.time_to_first_token_s))
        if reply.num_cached_tokens is not None:
            computed = reply.num_prompt_tokens - reply.num_cached_tokens
            results.append((Figure(f"{name}: computed", "tokens", "plain"), float(computed)))
    shortest, longest = sizes.cached[0], sizes.cached[-1]
    growth = Figure(f"warm turn, TTFT at {longest} over at {shortest}", "times", "plain")
    return [*results, (growth, seconds[-1] / seconds[0])]


async def decode(client: Client, prompts: Prompts, sizes: Sizes) -> Results:
    results: Results = []
    for context in sizes.contexts:
        reply = await client.ask(prompts.draw(context), sizes.decoded)
        rate = (reply.num_tokens - 1) / (reply.last_at - reply.first_at)
        results.append((Figure(f"decode, 1 stream after {context}", "tokens/s", "rate"), rate))
    conversations = [prompts.draw(sizes.contexts[0]) for _ in range(sizes.streams)]
    for messages in conversations:
        await client.ask(messages, 1)
    replies = await client.ask_all(conversations, sizes.decoded)
    figure = Figure(f"decode, {sizes.streams} streams after {sizes.contexts[0]}", "tokens/s", "rate")
    return [*results, (figure, aggregate_rate(replies))]


def aggregate_rate(replies: list[Reply]) -> float:
    """Tokens per second over all streams while every one of them runs; pieces are weighed by tokens per piece."""
    start, end = max(reply.first_at for reply in replies), min(reply.last_at for reply in replies)
    if end <= start:
        raise BenchmarkFailed("the streams did not run at the same time")
    num_tokens = sum(
        sum(start < arrival <= end for arrival in reply.arrivals) * reply.num_tokens / len(reply.arrivals)
        for reply in replies
    )
    return num_tokens / (end - start)


async def sessions(client: Client, prompts: Prompts, sizes: Sizes) -> Results:
    """All sessions start at once; each asks its next question when it has its reply."""
    system = prompts.draw(sizes.system)[:1]
    replies: list[Reply] = []

    async def session(questions: list[str]) -> None:
        messages: Messages = [*system, {"role": "user", "content": questions[0]}]
        for following in [*questions[1:], ""]:
            reply = await client.ask(messages, sizes.reply)
            replies.append(reply)
            messages = go_on(messages, reply.text, following)

    questions = [[prompts.question(SESSION_WORDS) for _ in range(sizes.turns)] for _ in range(sizes.sessions)]
    async with asyncio.TaskGroup() as group:
        for own in questions:
            group.create_task(session(own))
    wall_s = max(reply.last_at for reply in replies) - min(reply.sent_at for reply in replies)
    waits = [1000 * reply.time_to_first_token_s for reply in replies]
    name = f"{sizes.sessions} sessions x {sizes.turns} turns"
    return [
        (Figure(f"{name}: replies", "tokens/s", "rate"), sum(reply.num_tokens for reply in replies) / wall_s),
        (Figure(f"{name}: p50 TTFT", "ms"), median(waits)),
        (Figure(f"{name}: p95 TTFT", "ms"), quantiles(waits, n=20, method="inclusive")[-1]),
    ]


async def stall(client: Client, prompts: Prompts, sizes: Sizes) -> Results:
    """Gaps between a stream's pieces: before the long prompt was sent, and while it was computed.

    stream   .  .  .  .  .  .|.      .     .       .  |.  .  .
                     usual   sent     worst           its first token; the streams are dropped
    """
    streams = [Reply(0.0) for _ in range(sizes.stalled_streams)]
    conversations = [prompts.draw(sizes.stall_context) for _ in streams]
    long_prompt = prompts.draw(sizes.stall_prompt)
    for messages in conversations:
        await client.ask(messages, 1)
    tasks = [
        asyncio.create_task(client.ask(messages, MAX_REPLY, stream))
        for messages, stream in zip(conversations, streams, strict=True)
    ]
    try:
        while any(len(stream.arrivals) < sizes.stall_warm_up for stream in streams):
            _refuse_ended(tasks)
            await asyncio.sleep(0.005)
        reply = await client.ask(long_prompt, 1)
        _refuse_ended(tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    usual = median(gap for stream in streams for gap in gaps(stream, 0.0, reply.sent_at))
    worst = max(gap for stream in streams for gap in gaps(stream, reply.sent_at, reply.first_at))
    name = f"{sizes.stall_prompt} cold tokens beside {sizes.stalled_streams} streams"
    return [
        (Figure(f"{name}: usual gap", "ms"), 1000 * usual),
        (Figure(f"{name}: worst gap", "ms"), 1000 * worst),
        (Figure(f"{name}: worst over usual", "times", "plain"), worst / usual),
        (Figure(f"{name}: its TTFT", "ms"), 1000 * reply.time_to_first_token_s),
    ]


def gaps(stream: Reply, start: float, end: float) -> list[float]:
    """Seconds between pieces, of every gap that overlaps [start, end]; one still open at `end` counts until then."""
    moments = [*(arrival for arrival in stream.arrivals if arrival < end), end]
    return [after - before for before, after in pairwise(moments) if after > start]


def _refuse_ended(tasks: list[asyncio.Task[Reply]]) -> None:
    for task in tasks:
        if task.done():
            task.result()
            raise BenchmarkFailed("a stream ended before the long prompt was answered: it must ignore EOS")


Scenario = Callable[[Client, Prompts, Sizes], Coroutine[None, None, Results]]
SCENARIOS: Final[dict[str, Scenario]] = {
    "cold": cold,
    "warm": warm,
    "decode": decode,
    "sessions": sessions,
    "stall": stall,
}
