"""The engine's step on a real model, without HTTP and text: scheduler, runner, pool. Prefill, warm turn, decode.

The reference is plain torch: the model's own modules in fp32, attention by gather. The others are what is served.
"""

from array import array
from collections.abc import Sequence
from itertools import count
from statistics import median
from typing import Final

import click

from benchmarks.model import (
    ARITHMETICS,
    Arithmetic,
    RandomPrompts,
    chosen,
    describe_torch,
    find_kernels,
    load_as,
    model_folder,
    read_shapes,
)
from benchmarks.report import Comparison, Figure, measuring, milliseconds, timed
from sessions.engine.block_pool import BlockPool
from sessions.engine.config import EngineConfig
from sessions.engine.loaded import LoadedModel
from sessions.engine.request import Request
from sessions.engine.runner import ModelRunner
from sessions.engine.scheduler import Scheduler
from sessions.hashing import HashChain
from sessions.types import BlockHash, RequestId, SamplingParams

PROMPTS: Final = (512, 1024, 2048, 4096)
CACHED: Final = (128, 1000, 4096)
NEW_TOKENS: Final = 20
DECODES: Final = ((1, 50), (1, 500), (1, 1000), (4, 500), (8, 500), (16, 500))
"""(batch, context)."""
GREEDY: Final = SamplingParams(temperature=0)
STEPS_PER_SAMPLE: Final = 8

QUICK_PROMPTS: Final = (256,)
QUICK_CACHED: Final = (64, 256)
QUICK_DECODES: Final = ((1, 64), (4, 64))


@click.command()
@click.option("--model", default="default", show_default=True)
@click.option(
    "--arithmetic",
    "names",
    multiple=True,
    type=click.Choice(list(ARITHMETICS)),
    default=("torch", "file", "fp16", "int8"),
    show_default=True,
    help="The first is the reference.",
)
@click.option("--budget", default=256, show_default=True, help="Token budget of a step.")
@click.option(
    "--drafts", default=0, show_default=True, help="Draft tokens per step; 0, for what they save depends on the text."
)
@click.option("--repeats", default=5, show_default=True)
@click.option("--quick", is_flag=True, help="Short prompts, two repeats.")
def step(model: str, names: Sequence[str], budget: int, drafts: int, repeats: int, quick: bool) -> None:
    """The engine's step: prefill and decode tokens/s, warm turn."""
    repeats = min(repeats, 2) if quick else repeats
    prompts, cached, decodes = (QUICK_PROMPTS, QUICK_CACHED, QUICK_DECODES) if quick else (PROMPTS, CACHED, DECODES)
    folder = model_folder(model)
    config = EngineConfig(num_blocks=2048, max_num_batched_tokens=budget, max_num_seqs=16, max_num_draft_tokens=drafts)
    with measuring(f"step: {model}, token budget {budget}, drafts {drafts}, {describe_torch()}"):
        kernels = find_kernels()
        vocabulary = read_shapes(folder).vocabulary
        engines = {
            arithmetic.name: BareEngine(load_as(folder, arithmetic, kernels), config, RandomPrompts(vocabulary))
            for arithmetic in chosen(names)
        }
        report_engines(engines, chosen(names))
        comparison = Comparison(list(engines))
        for length in prompts:
            for _ in range(repeats):
                for name, engine in engines.items():
                    comparison.add(
                        Figure(f"prefill, {length} tokens", "tokens/s", "rate"), name, [engine.prefill(length)]
                    )
        for name, engine in engines.items():
            for length in cached:
                comparison.add(warm_figure(length), name, milliseconds(engine.warm(length, NEW_TOKENS, repeats)))
            for batch, context in decodes:
                figure = Figure(f"decode, batch {batch}, context {context}", "tokens/s", "rate")
                comparison.add(figure, name, engine.decode(batch, context, repeats))
        comparison.print()
        print_growth(comparison, list(engines), cached)


def warm_figure(num_cached: int) -> Figure:
    return Figure(f"warm step, {NEW_TOKENS} after {num_cached} cached", "ms")


class BareEngine:
    """Runner and scheduler, stepped by hand. Every measurement has an empty pool of its own over the same tensors."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig, prompts: RandomPrompts) -> None:
        self.loaded = loaded
        self._config = config
        self._prompts = prompts
        self._numbers = count()
        self._runner = ModelRunner(loaded, loaded.open_pool(config.num_blocks, config.block_size))
        self._scheduler = self._empty()

    def prefill(self, num_tokens: int, params: SamplingParams = GREEDY, *, is_scored: bool = False) -> float:
        """Prompt tokens per second of one cold prompt, its first token included. is_scored: and its logprobs."""
        self._scheduler = self._empty()
        self._add(self._prompts.draw(num_tokens), 1, params).wants_prompt_scores = is_scored
        return num_tokens / timed(self._run)

    def warm(self, num_cached: int, num_new: int, repeats: int) -> list[float]:
        """Seconds for the first token of prompts whose first `num_cached` tokens are in the pool."""
        self._scheduler = self._empty()
        prompt = self._prompts.draw(num_cached)
        self._add(prompt, 1)
        self._run()
        samples = []
        for _ in range(repeats):
            request = self._add(prompt + self._prompts.draw(num_new), 1)
            samples.append(timed(self._run))
            assert request.num_cached_tokens == num_cached, "the pool did not have what it was given"
        return samples

    def decode(self, batch: int, context: int, num_samples: int, params: SamplingParams = GREEDY) -> list[float]:
        """Tokens per second over all of a batch, a sample per `STEPS_PER_SAMPLE` steps, once all prompts are done."""
        self._scheduler = self._empty()
        room = self._config.pool_tokens // batch - context - 1
        requests = [self._add(self._prompts.draw(context), room, params) for _ in range(batch)]
        while any(request.num_output_tokens < 2 for request in requests):
            self._step()

        def steps() -> None:
            for _ in range(STEPS_PER_SAMPLE):
                self._step()

        samples = []
        for _ in range(num_samples):
            before = sum(request.num_output_tokens for request in requests)
            seconds = timed(steps)
            samples.append((sum(request.num_output_tokens for request in requests) - before) / seconds)
        return samples

    def _empty(self) -> Scheduler:
        return Scheduler(self._config, BlockPool(self._config.num_blocks, self._config.block_size))

    def _add(self, prompt: list[int], max_tokens: int, params: SamplingParams = GREEDY) -> Request:
        chain = HashChain(BlockHash(bytes(16)), self._config.block_size)
        chain.extend(prompt)
        name = RequestId(str(next(self._numbers)))
        request = Request(name, array("I", prompt), chain, params, max_tokens, frozenset(), 0)
        self._scheduler.add(request)
        return request

    def _run(self) -> None:
        while self._scheduler.has_work:
            self._step()

    def _step(self) -> None:
        schedule = self._scheduler.schedule()
        self._scheduler.commit(schedule, self._runner.execute(schedule))


def report_engines(engines: dict[str, BareEngine], arithmetics: Sequence[Arithmetic]) -> None:
    """What each name means here; runs each once, so that nothing is measured cold."""
    for arithmetic in arithmetics:
        engine = engines[arithmetic.name]
        loaded = engine.loaded
        kv_dtype = str(loaded.kv_dtype).removeprefix("torch.")
        print(f"   {arithmetic.name}: weights {loaded.quantization}, KV {kv_dtype}, {loaded.numerics}")
        engine.prefill(64)


def print_growth(comparison: Comparison, names: Sequence[str], cached: Sequence[int]) -> None:
    """What a long cached prefix costs beside a short one: flat is 1."""
    samples = comparison.samples
    short, long = (samples[warm_figure(length)] for length in (cached[0], cached[-1]))
    shown = ", ".join(f"{name} {median(long[name]) / median(short[name]):.2f}" for name in names)
    print(f"warm step after {cached[-1]} cached over after {cached[0]}: {shown}")
