"""The oracle's parts: tiny models, right answers, an engine without a thread, and ways to run requests through it.

Blocks hold 4 tokens where torch attends, 8 where the kernels do (they need a multiple of 8).
"""

from array import array
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sessions.engine.block_pool import BlockPool
from sessions.engine.config import EngineConfig
from sessions.engine.loaded import LoadedModel
from sessions.engine.measure import prepare_model
from sessions.engine.native.kernels import Kernels
from sessions.engine.request import Request
from sessions.engine.runner import ModelRunner
from sessions.engine.scheduler import Scheduler
from sessions.hashing import HashChain
from sessions.types import BlockHash, RequestId, SamplingParams

NUM_NEW = 6
SHAPE = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": None, "bos_token_id": 1,
    "eos_token_id": None,
}  # fmt: skip
SERVED: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 7},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1},
    "gemma3_text": {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 64},
    "gpt_neox": {},
    "olmo2": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "granite": {},
    "granite+multipliers": {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3},
    "cohere": {},
    "starcoder2": {"sliding_window": 7},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "do_layer_norm_before": True},
}
REFUSED = {
    "falcon": {},
    "gemma2": {},
    "stablelm": {},
    "mamba": {"state_size": 8},
    "bloom": {"n_layer": 2, "n_head": 4},
}


def tiny_model(kind: str, extra: dict[str, Any]) -> Any:
    torch.manual_seed(1)
    kind = kind.partition("+")[0]
    shape = (
        SHAPE
        if kind not in ("gpt2", "bloom")
        else {k: v for k, v in SHAPE.items() if k in ("vocab_size", "hidden_size")}
    )
    if kind == "falcon":
        shape = {name: value for name, value in SHAPE.items() if name != "head_dim"}
    if kind == "gpt2":
        shape = {"vocab_size": 128, "bos_token_id": 1, "eos_token_id": None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(shape | extra)), dtype=torch.float32).eval()
    for parameter in model.parameters():  # larger weights: greedy choices that rounding cannot flip
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    return model


class Oracle:
    """A model's own answers, then the engine's."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.answers: dict[tuple[int, ...], list[int]] = {}

    def learn(self, prompts: list[list[int]]) -> None:
        """Prompts of one length go through `generate()` together: no padding, so nothing but speed changes."""
        for _, alike in groupby(sorted(prompts, key=len), key=len):
            ids = torch.tensor(list(alike))
            with torch.inference_mode():
                out = self._model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=NUM_NEW,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                )
            self.answers |= {tuple(answer[: ids.shape[1]]): answer for answer in out.tolist()}

    def prepare(self, kernels: Kernels | None = None) -> LoadedModel:
        return prepare_model(self._model, kernels)


class ColdOracle:
    """An engine's own answers, each prompt cold and alone: what every other way of computing it must repeat."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self.answers: dict[tuple[int, ...], list[int]] = {}

    def learn(self, prompts: list[list[int]]) -> None:
        for prompt in prompts:
            (request,) = Bench(self._loaded, max_num_batched_tokens=512, num_blocks=512).run(prompt)
            self.answers[tuple(prompt)] = list(request.token_ids)


Answers = Oracle | ColdOracle


def block_size_of(loaded: LoadedModel) -> int:
    return 4 if loaded.kernels is None else 8


class Bench:
    """Scheduler, pool and runner, stepped by hand."""

    def __init__(self, loaded: LoadedModel, **config: int) -> None:
        self.config = EngineConfig(
            **({"num_blocks": 64, "max_num_batched_tokens": 64, "max_num_seqs": 8} | config),
            block_size=block_size_of(loaded),
        )
        cache = loaded.open_pool(self.config.num_blocks, self.config.block_size)
        self.scheduler = Scheduler(self.config, BlockPool(self.config.num_blocks, self.config.block_size))
        self.runner = ModelRunner(loaded, cache)
        self.count = 0
        self.num_copies = 0
        self.num_computed_tokens = 0

    def add(self, prompt: list[int]) -> Request:
        chain = HashChain(BlockHash(b"r" * 16), self.config.block_size)
        chain.extend(prompt)
        self.count += 1
        greedy, token_ids = SamplingParams(temperature=0), array("I", prompt)
        request = Request(RequestId(str(self.count)), token_ids, chain, greedy, NUM_NEW, frozenset(), 0)
        self.scheduler.add(request)
        return request

    def step(self) -> None:
        schedule = self.scheduler.schedule()
        self.num_copies += len(schedule.copies)
        assert schedule.entries, "a step without progress: the requests do not fit the pool"
        self.num_computed_tokens += sum(entry.num_tokens for entry in schedule.entries)
        self.scheduler.commit(schedule, self.runner.execute(schedule))
        self.scheduler.check_integrity()

    def run(self, *prompts: list[int]) -> list[Request]:
        requests = [self.add(prompt) for prompt in prompts]
        while self.scheduler.has_work:
            self.step()
        return requests


@dataclass(frozen=True)
class Family:
    """A prompt and others that begin with it and then differ at once, from it and from each other."""

    parent: list[int]
    forks: list[list[int]]

    @property
    def prompts(self) -> list[list[int]]:
        return [self.parent, *self.forks]


def families(tokens: list[int], block_size: int) -> list[Family]:
    """One for every offset in a block at which the parent's prompt can end. `tokens`: at least 33 different ones."""
    tokens = list(dict.fromkeys(tokens))
    suffixes = [tokens[-1:], tokens[-4:-1], tokens[-9:-4]]
    parents = [tokens[: 2 * block_size + offset] for offset in range(block_size)]
    return [Family(parent, [[*parent, *suffix] for suffix in suffixes]) for parent in parents]


def assert_forks_are_right(oracle: Answers, loaded: LoadedModel, family: Family) -> None:
    """Forked together: off a parent that runs, off one that has ended, and off each other.

    parent   [ full block ][ full block ][ P P . . ]     forks copy the tail; the parent writes on
    """
    bench = Bench(loaded)
    offset = len(family.parent) % bench.config.block_size
    parent = bench.add(family.parent)
    bench.step()
    forks = bench.run(*family.forks)
    assert_right(oracle, [parent, *forks])
    assert [fork.num_cached_tokens for fork in forks] == [len(family.parent)] * len(forks)
    assert bench.num_copies == (len(forks) if offset else 0)
    assert_right(oracle, bench.run(*reversed(family.prompts)))

    ended = Bench(loaded)
    ended.run(family.parent)
    assert_right(oracle, ended.run(*family.forks))
    assert_right(oracle, Bench(loaded, max_num_batched_tokens=5, max_num_seqs=3).run(*family.forks))


def assert_choices_are_right(oracle: Answers, loaded: LoadedModel, prompt: list[int], n: int = 4) -> None:
    """The prompt is computed once; each choice but the first computes its last token again, to draw from it."""
    bench = Bench(loaded, max_num_draft_tokens=0)
    choices = bench.run(*[prompt] * n)
    assert_right(oracle, choices)
    assert [choice.num_cached_tokens for choice in choices] == [0] + [len(prompt) - 1] * (n - 1)
    assert bench.num_computed_tokens == len(prompt) + (n - 1) + n * (NUM_NEW - 1)
    small = Bench(loaded, num_blocks=8, max_num_seqs=n)
    assert_right(oracle, small.run(*[prompt] * n))


def assert_right(oracle: Answers, requests: list[Request]) -> None:
    for request in requests:
        assert list(request.token_ids) == oracle.answers[tuple(request.token_ids[: request.num_prompt_tokens])]


def cache_dir() -> Path:
    """The user's cache folder, as `anaphora serve` uses it: the conversion is made once."""
    from proxy.settings import Settings

    return Settings().cache_dir


def assert_cold_warm_and_beside_strangers(oracle: Answers, loaded: LoadedModel, prompts: list[list[int]]) -> None:
    bench = Bench(loaded)
    assert_right(oracle, bench.run(prompts[0]))
    warm = bench.run(prompts[0])
    assert warm[0].num_cached_tokens == len(prompts[0]) - 1
    assert_right(oracle, warm)
    assert_right(oracle, bench.run(*prompts[1:4], prompts[0]))


def assert_right_at_every_cached_length(oracle: Answers, loaded: LoadedModel, prompts: list[list[int]]) -> None:
    for cut, prompt in enumerate(prompts[4:]):
        bench = Bench(loaded)
        bench.run(prompts[0])
        (request,) = bench.run(prompt)
        assert request.num_cached_tokens is not None and request.num_cached_tokens >= min(cut, len(prompt) - 1)
        assert_right(oracle, [request])


def assert_right_in_trouble(oracle: Answers, loaded: LoadedModel, prompts: list[list[int]]) -> None:
    """Chunked, evicted, preempted, and after a neighbour's abort."""
    assert_right(oracle, Bench(loaded, max_num_batched_tokens=8).run(*prompts[:4]))
    small = Bench(loaded, num_blocks=48 // block_size_of(loaded))
    assert_right(oracle, small.run(*prompts[:4]))
    assert small.scheduler.num_preemptions + small.scheduler.pool.num_evicted_blocks > 0
    assert_right(oracle, small.run(*prompts[3::-1]))
    bench = Bench(loaded)
    neighbour, request = bench.add(prompts[2]), bench.add(prompts[3])
    bench.step()
    bench.scheduler.abort(neighbour.id)
    bench.run()
    assert_right(oracle, [request])


def tiny_prompts() -> list[list[int]]:
    """Three strangers, a relative of the first, and 22 that leave the first at every position."""
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(3, 120, (length,), generator=generator).tolist() for length in (21, 5, 13)]
    prompts.append([*prompts[0][:10], *prompts[2]])
    return prompts + [[*prompts[0][:cut], *prompts[1]] for cut in range(22)]


def tiny_families(block_size: int) -> list[Family]:
    generator = torch.Generator().manual_seed(5)
    return families((torch.randperm(117, generator=generator) + 3).tolist()[:40], block_size)
