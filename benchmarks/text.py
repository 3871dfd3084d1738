"""A turn's cost outside the model: wire, rendering, tokens, hashes, pool, submission, and the first token's way back.

A real `ChatService` with pool, scheduler and engine thread; only the model is gone: its runner answers at once. Each
conversation is new to all caches when it is sent first (cold); its next turn adds a reply and a question.
"""

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import click
import msgspec

from benchmarks.instant_runner import InstantRunner
from benchmarks.model import model_folder
from benchmarks.report import measuring, number, print_table, timed
from benchmarks.words import WordSource
from proxy.body import decode_chat_request
from proxy.translate import chat_request
from sessions.conversation import canonical
from sessions.engine.config import EngineConfig
from sessions.hashing import HashChain, RootFields, root_hash, tenant_key
from sessions.parts import ServiceParts
from sessions.render import render
from sessions.service import ChatService
from sessions.tokenizer import Tokenizer
from sessions.types import ChatRequest, Tenant

SIZES: Final = (1_000, 5_000, 10_000, 25_000, 50_000)
QUICK_SIZES: Final = (1_000, 5_000)
TOKENS_PER_WORD: Final = 1.155
"""Full stops and the template's tokens included; of the default model, nearly so of others."""
SYSTEM_WORDS: Final = 200
QUESTION_WORDS: Final = 30
REPLY_WORDS: Final = 120
REPLY_TOKENS: Final = 16
LATER_STEP_S: Final = 0.001
"""A step after the first token's, which itself takes no time: what follows that token is no part of its way."""
SECRET: Final = bytes(32)
STAGES: Final = ("wire", "render", "encode", "hash", "match", "start", "first token")
"""match: both lookups a request makes, as one. start: `ChatService.start`, which is render to submission."""

Wire = list[dict[str, str]]


@click.command()
@click.option("--model", default="default", show_default=True, help="Whose tokenizer and template.")
@click.option("--repeats", default=5, show_default=True, help="Conversations of each length.")
@click.option("--quick", is_flag=True, help="Short conversations, two repeats.")
def text(model: str, repeats: int, quick: bool) -> None:
    """Everything but the model, by length of the conversation: a turn after the first, and cold."""
    sizes, repeats = (QUICK_SIZES, min(repeats, 2)) if quick else (SIZES, repeats)
    folder = model_folder(model)
    with measuring(f"text: tokenizer and template of {model}, a model that answers at once"):
        asyncio.run(_measure(lambda: Tokenizer.load(folder), sizes, repeats))


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds by stage of one request, and what was found. reply: what the runner said."""

    stages: dict[str, float]
    num_prompt_tokens: int
    num_cached_tokens: int
    reply: str

    @property
    def total_s(self) -> float:
        return self.stages["wire"] + self.stages["first token"]


class Bench:
    """A service, and beside it the stages one by one with a tokenizer of their own, whose cache sees the same turns."""

    def __init__(self, load_tokenizer: Callable[[], Tokenizer]) -> None:
        self._tokenizer = load_tokenizer()
        served = load_tokenizer()
        word = next(token for token in range(1_000, served.vocab_size) if served.decode([token]).strip().isalpha())
        self._config = EngineConfig(num_blocks=16_384, max_model_len=131_072)
        self._fields = RootFields(self._config.block_size, "", "", "none", "", "", "benchmark", served.digest, "")
        parts = ServiceParts("model", served, self._config, self._fields, SECRET, max_num_waiting=0)
        self.service = ChatService(parts, InstantRunner(word, pause_s=LATER_STEP_S))
        self.service.open()

    async def turn(self, messages: Wire) -> Turn:
        """One request: its stages one by one, then all of it through the service."""
        body = msgspec.json.encode(
            {"model": "model", "messages": messages, "temperature": 0, "max_tokens": REPLY_TOKENS, "stream": True}
        )
        request, stages = await self._stages(body)
        started_at = time.monotonic()
        generation = await self.service.start(request)
        stages["start"] = time.monotonic() - started_at
        pieces = []
        async for delta in generation:
            stages.setdefault("first token", time.monotonic() - started_at)
            pieces.append(delta.text)
        usage = generation.usage()
        generation.close()
        return Turn(stages, usage.prompt_tokens, usage.cached_tokens, "".join(pieces))

    async def _stages(self, body: bytes) -> tuple[ChatRequest, dict[str, float]]:
        clock = Clock()
        wire = decode_chat_request(body, max_depth=64, max_messages=100_000)
        request = chat_request(wire, tenant=Tenant(), max_n=1, vocab_size=self.service.vocab_size)
        clock.lap("wire")
        prompt = render(canonical(request.messages, request.tools), self._tokenizer.template)
        clock.lap("render")
        token_ids = self._tokenizer.encode(prompt)
        clock.lap("encode")
        chain = HashChain(root_hash(self._fields, tenant_key(SECRET, "default", None)), self._config.block_size)
        chain.extend(token_ids)
        clock.lap("hash")
        pool = self.service.engine.scheduler.pool

        def match() -> None:
            pool.num_cached_prefix_blocks(chain.hashes)
            pool.match_prompt(chain, token_ids)

        clock.laps["match"] = await asyncio.wrap_future(self.service.engine.call(lambda: timed(match)))
        return request, clock.laps


class Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._at = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = now - self._at
        self._at = now


async def _measure(load_tokenizer: Callable[[], Tokenizer], sizes: Sequence[int], repeats: int) -> None:
    bench = Bench(load_tokenizer)
    gc.collect()
    gc.freeze()  # as the server does once it is ready
    gc.set_threshold(10_000)
    source = WordSource(seed=0)
    try:
        await _conversation(bench, source, sizes[0])  # not counted
        colds, nexts = {}, {}
        for size in sizes:
            turns = [await _conversation(bench, source, size) for _ in range(repeats)]
            colds[size], nexts[size] = zip(*turns, strict=True)
    finally:
        await bench.service.close()
    for heading, by_size in (("cold", colds), ("next turn", nexts)):
        print(f"{heading}, ms")
        print_table(
            ["prompt", "new", *STAGES, "total", *(["cold/next", "growth"] if by_size is nexts else []), "n"],
            [_row(size, colds, nexts, sizes[0], is_next=by_size is nexts) for size in sizes],
        )
        print()
    print("total: wire and first token. cold/next: total of the first sending over this. growth: over the first row.")


async def _conversation(bench: Bench, source: WordSource, num_tokens: int) -> tuple[Turn, Turn]:
    """(cold, next turn) of a conversation nobody has seen, of about so many tokens."""
    num_words = round(num_tokens / TOKENS_PER_WORD)
    messages: Wire = [{"role": "system", "content": source.take(SYSTEM_WORDS)}]
    for _ in range((num_words - SYSTEM_WORDS) // (QUESTION_WORDS + REPLY_WORDS)):
        messages.append({"role": "user", "content": source.take(QUESTION_WORDS)})
        messages.append({"role": "assistant", "content": source.take(REPLY_WORDS)})
    messages.append({"role": "user", "content": source.take(QUESTION_WORDS)})
    cold = await bench.turn(messages)
    messages.append({"role": "assistant", "content": cold.reply})
    messages.append({"role": "user", "content": source.take(QUESTION_WORDS)})
    return cold, await bench.turn(messages)


Turns = dict[int, tuple[Turn, ...]]


def _row(size: int, colds: Turns, nexts: Turns, first: int, *, is_next: bool) -> list[str]:
    turns = nexts[size] if is_next else colds[size]
    new = median(turn.num_prompt_tokens - turn.num_cached_tokens for turn in turns)
    stages = [number(1000 * median(turn.stages[stage] for turn in turns)) for stage in STAGES]
    total = _total(turns)
    ratios = [f"{_total(colds[size]) / total:.1f}", f"{total / _total(nexts[first]):.2f}"] if is_next else []
    prompt = median(turn.num_prompt_tokens for turn in turns)
    return [f"{prompt:.0f}", f"{new:.0f}", *stages, number(1000 * total), *ratios, str(len(turns))]


def _total(turns: Sequence[Turn]) -> float:
    return median(turn.total_s for turn in turns)
