"""The oracle: greedy ids over the block pool equal `transformers.generate()` on the same prompt, fp32 on CPU.

Every listed architecture with tiny random weights, and the default model with its real ones: cold, warm at every cached
length, chunked, beside strangers, forked at every offset in a block, as choices of one prompt, after eviction, after
preemption, after a neighbour's abort.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sessions.engine.block_pool import BlockPool
from sessions.engine.config import EngineConfig
from sessions.engine.kv_cache import KVCache
from sessions.engine.loader import LoadedModel, prepare_model
from sessions.engine.request import Request
from sessions.engine.runner import ModelRunner
from sessions.engine.scheduler import Scheduler
from sessions.errors import ModelRefused
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
    "smollm3": {},
    "granite": {},
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

    def prepare(self) -> LoadedModel:
        return prepare_model(self._model)


class Bench:
    def __init__(self, loaded: LoadedModel, **config: int) -> None:
        self.config = EngineConfig(
            **({"block_size": 4, "num_blocks": 64, "max_num_batched_tokens": 64, "max_num_seqs": 8} | config)
        )
        cache = KVCache(loaded.layers, self.config.num_blocks, self.config.block_size, loaded.dtype, loaded.device)
        self.scheduler = Scheduler(self.config, BlockPool(self.config.num_blocks, self.config.block_size))
        self.runner = ModelRunner(loaded, cache)
        self.count = 0
        self.num_copies = 0
        self.num_computed_tokens = 0

    def add(self, prompt: list[int]) -> Request:
        chain = HashChain(BlockHash(b"r" * 16), self.config.block_size)
        chain.extend(prompt)
        self.count += 1
        request = Request(
            RequestId(str(self.count)), list(prompt), chain, SamplingParams(temperature=0), NUM_NEW, frozenset(), 0
        )
        self.scheduler.add(request)
        return request

    def step(self) -> None:
        schedule = self.scheduler.schedule()
        self.num_copies += len(schedule.copies)
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


def families(tokens: list[int], block_size: int = 4) -> list[Family]:
    """One for every offset in a block at which the parent's prompt can end. `tokens`: at least 20 different ones."""
    tokens = list(dict.fromkeys(tokens))
    suffixes = [tokens[-1:], tokens[-4:-1], tokens[-9:-4]]
    parents = [tokens[: 2 * block_size + offset] for offset in range(block_size)]
    return [Family(parent, [[*parent, *suffix] for suffix in suffixes]) for parent in parents]


def assert_forks_are_right(oracle: Oracle, loaded: LoadedModel, family: Family) -> None:
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


def assert_choices_are_right(oracle: Oracle, loaded: LoadedModel, prompt: list[int], n: int = 4) -> None:
    """The prompt is computed once; each choice but the first computes its last token again, to draw from it."""
    bench = Bench(loaded)
    choices = bench.run(*[prompt] * n)
    assert_right(oracle, choices)
    assert [choice.num_cached_tokens for choice in choices] == [0] + [len(prompt) - 1] * (n - 1)
    assert bench.num_computed_tokens == len(prompt) + (n - 1) + n * (NUM_NEW - 1)
    small = Bench(loaded, num_blocks=8, max_num_seqs=n)
    assert_right(oracle, small.run(*[prompt] * n))


@pytest.fixture(scope="module", params=sorted(SERVED))
def tiny(request: pytest.FixtureRequest) -> Iterator[tuple[Oracle, LoadedModel, list[list[int]]]]:
    model = tiny_model(request.param, SERVED[request.param])
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(3, 120, (length,), generator=generator).tolist() for length in (21, 5, 13)]
    prompts.append([*prompts[0][:10], *prompts[2]])
    prompts += [[*prompts[0][:cut], *prompts[1]] for cut in range(22)]
    oracle = Oracle(model)
    oracle.learn(prompts + [prompt for family in families(prompts[0] + prompts[2]) for prompt in family.prompts])
    yield oracle, oracle.prepare(), prompts


def assert_right(oracle: Oracle, requests: list[Request]) -> None:
    for request in requests:
        assert request.token_ids == oracle.answers[tuple(request.token_ids[: request.num_prompt_tokens])]


def test_cold_warm_and_beside_strangers(tiny: tuple[Oracle, LoadedModel, list[list[int]]]) -> None:
    oracle, loaded, prompts = tiny
    bench = Bench(loaded)
    assert_right(oracle, bench.run(prompts[0]))
    warm = bench.run(prompts[0])
    assert warm[0].num_cached_tokens == len(prompts[0]) - 1
    assert_right(oracle, warm)
    assert_right(oracle, bench.run(*prompts[1:4], prompts[0]))


def test_every_cached_length(tiny: tuple[Oracle, LoadedModel, list[list[int]]]) -> None:
    oracle, loaded, prompts = tiny
    for cut, prompt in enumerate(prompts[4:]):
        bench = Bench(loaded)
        bench.run(prompts[0])
        (request,) = bench.run(prompt)
        assert request.num_cached_tokens is not None and request.num_cached_tokens >= min(cut, len(prompt) - 1)
        assert_right(oracle, [request])


def test_chunked_evicted_preempted_and_after_an_abort(tiny: tuple[Oracle, LoadedModel, list[list[int]]]) -> None:
    oracle, loaded, prompts = tiny
    assert_right(oracle, Bench(loaded, max_num_batched_tokens=8).run(*prompts[:4]))
    small = Bench(loaded, num_blocks=12)
    assert_right(oracle, small.run(*prompts[:4]))
    assert small.scheduler.num_preemptions + small.scheduler.pool.num_evicted_blocks > 0
    assert_right(oracle, small.run(*prompts[3::-1]))
    bench = Bench(loaded)
    neighbour, request = bench.add(prompts[2]), bench.add(prompts[3])
    bench.step()
    bench.scheduler.abort(neighbour.id)
    bench.run()
    assert_right(oracle, [request])


def test_forked_at_every_tail_offset(tiny: tuple[Oracle, LoadedModel, list[list[int]]]) -> None:
    oracle, loaded, prompts = tiny
    for family in families(prompts[0] + prompts[2]):
        assert_forks_are_right(oracle, loaded, family)


def test_choices_of_one_prompt(tiny: tuple[Oracle, LoadedModel, list[list[int]]]) -> None:
    oracle, loaded, prompts = tiny
    for family in families(prompts[0] + prompts[2]):
        assert_choices_are_right(oracle, loaded, family.parent)


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_cannot_be_served_is_refused_with_the_reason(kind: str) -> None:
    with pytest.raises(ModelRefused, match=kind) as refusal:
        prepare_model(tiny_model(kind, REFUSED[kind]))
    assert len(str(refusal.value)) > len(kind) + 10


@pytest.mark.model
@pytest.mark.slow
def test_the_default_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    from sessions.model_folder import resolve_model

    folder = resolve_model("default", _cache_dir(), lambda _: None)
    oracle = Oracle(AutoModelForCausalLM.from_pretrained(folder.path, dtype=torch.float32).eval())
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 40_000, (length,), generator=generator).tolist() for length in (70, 33)]
    prompts.append([*prompts[0][:50], *prompts[1]])
    kin = families(prompts[0])
    oracle.learn(prompts + [prompt for family in kin for prompt in family.prompts])
    loaded = oracle.prepare()
    for config in ({}, {"max_num_batched_tokens": 16}, {"num_blocks": 48}):
        bench = Bench(loaded, **config)
        for _ in range(2):
            assert_right(oracle, bench.run(*prompts))
    for family in kin:
        assert_forks_are_right(oracle, loaded, family)
        assert_choices_are_right(oracle, loaded, family.parent)


def _cache_dir() -> Path:
    """The user's cache folder, as `anaphora serve` uses it: the conversion is made once."""
    from proxy.settings import Settings

    return Settings().cache_dir
