"""What packed weights and a small KV dtype cost in quality: `python -m benchmarks.quality`. Speed is not measured.

The same text goes through the model in every arithmetic, over the block pool and by the kernels that `serve` uses; the
reference is fp32 with fp32 KV. Per token of the text: KL divergence from the reference's distribution of the next token
(nats), how often the most likely token is the same, and the perplexity of the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pydoc_data.topics import topics

import click
import numpy as np
import torch

from benchmarks.model import Arithmetic, describe_torch, find_kernels, load_as, model_folder
from benchmarks.report import print_table
from sessions.engine.attending import open_attention
from sessions.engine.batch import SEQUENCE, Batch
from sessions.engine.kv_cache import KVCache
from sessions.engine.loaded import LoadedModel
from sessions.tokenizer import Tokenizer

BLOCK_SIZE = 16
CHUNK = 256
"""Tokens of a forward, as the engine's default token budget."""

REFERENCE = Arithmetic("fp32, KV float32", "none", "float32", True)
OTHERS = (
    Arithmetic("fp32, KV float16", "none", "float16", True),
    Arithmetic("fp32, KV int8", "none", "int8", True),
    Arithmetic("file, KV float32", "file", "float32", True),
    Arithmetic("file, KV float16 (default)", "file", "float16", True),
    Arithmetic("fp16, KV float32", "fp16", "float32", True),
    Arithmetic("fp16, KV float16", "fp16", "float16", True),
    Arithmetic("fp16, KV int8", "fp16", "int8", True),
    Arithmetic("int8, KV float32", "int8", "float32", True),
    Arithmetic("int8, KV float16", "int8", "float16", True),
    Arithmetic("int8, KV int8", "int8", "int8", True),
)


@dataclass
class Score:
    """Sums over tokens."""

    num_tokens: int = 0
    divergence: float = 0.0
    agreed: int = 0
    surprise: float = 0.0

    def add(self, logits: torch.Tensor, reference: torch.Tensor, following: torch.Tensor) -> None:
        """logits, reference [n, vocabulary]; following [n]: the text's own next tokens. Mutates."""
        log_p, log_q = (scores.float().log_softmax(dim=-1) for scores in (reference, logits))
        self.num_tokens += len(following)
        self.divergence += float((log_p.exp() * (log_p - log_q)).sum())
        self.agreed += int((log_p.argmax(dim=-1) == log_q.argmax(dim=-1)).sum())
        self.surprise -= float(log_q.gather(1, following[:, None]).sum())

    @property
    def mean_divergence(self) -> float:
        """Nats."""
        return self.divergence / self.num_tokens

    @property
    def agreement(self) -> float:
        """Share of tokens."""
        return self.agreed / self.num_tokens

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.surprise / self.num_tokens))


def fixed_text(tokenizer: Tokenizer, num_tokens: int) -> list[int]:
    """The beginning of Python's own language reference, which every installation of one version has."""
    ids: list[int] = []
    for name in sorted(topics):
        if len(ids) >= num_tokens:
            break
        ids += tokenizer.encode_text(topics[name], scope="")
    return ids[:num_tokens]


@torch.inference_mode()
def read(loaded: LoadedModel, cache: KVCache, token_ids: torch.Tensor) -> torch.Tensor:
    """token_ids [n], at most as many as the pool holds -> logits [n, vocabulary], computed in chunks."""
    attention = open_attention(loaded.attention, cache, loaded.kernels, loaded.max_model_len)
    table = np.arange(cache.num_blocks, dtype=np.int32)
    logits = []
    for start in range(0, len(token_ids), CHUNK):
        chunk = token_ids[start : start + CHUNK]
        batch = Batch(
            input_ids=chunk[None],
            positions=torch.arange(start, start + len(chunk))[None],
            logit_rows=torch.arange(len(chunk)),
            sequences=np.array([(table.ctypes.data, 0, start, len(chunk), 0)], SEQUENCE),
            block_tables=(table,),
        )
        logits.append(loaded.forward(batch, attention(batch)))
    return torch.cat(logits)


def compare(models: Sequence[LoadedModel], token_ids: Sequence[int], window: int) -> list[Score]:
    """Scores of every model against the first one, over windows that do not see each other."""
    caches = [model.open_pool(-(-window // BLOCK_SIZE), BLOCK_SIZE) for model in models]
    scores = [Score() for _ in models]
    for start in range(0, len(token_ids), window):
        ids = torch.tensor(token_ids[start : start + window])
        reference = read(models[0], caches[0], ids)[:-1]
        for score, model, cache in zip(scores, models, caches, strict=True):
            logits = reference if model is models[0] else read(model, cache, ids)[:-1]
            score.add(logits, reference, ids[1:])
    return scores


@click.command()
@click.option("--model", default="default", show_default=True, help="As `anaphora serve --model`.")
@click.option("--num-tokens", default=4096, show_default=True, help="Length of the text.")
@click.option("--window", default=512, show_default=True, help="Tokens that see each other.")
def main(model: str, num_tokens: int, window: int) -> None:
    """KL divergence, top-1 agreement and perplexity of each arithmetic against fp32."""
    folder = model_folder(model)
    kernels = find_kernels()
    if kernels is None:
        raise click.ClickException("int8 needs the CPU kernels")
    ids = fixed_text(Tokenizer.load(folder), num_tokens)
    arithmetics = (REFERENCE, *OTHERS)
    scores = compare([load_as(folder, arithmetic, kernels) for arithmetic in arithmetics], ids, window)
    digest = sha256(np.array(ids, np.uint32).tobytes()).hexdigest()[:12]
    print(f"{describe_torch()}; {len(ids)} tokens ({digest}) in windows of {window}")
    rows = [
        [arithmetic.name, f"{score.mean_divergence:.2e}", f"{score.agreement:.2%}", f"{score.perplexity:.3f}"]
        for arithmetic, score in zip(arithmetics, scores, strict=True)
    ]
    print_table(["weights and KV", "KL, nats", "top-1 agreement", "perplexity"], rows)


if __name__ == "__main__":
    main()
