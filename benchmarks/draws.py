"""Drawing tokens from logits (`sessions/engine/sampler.py`): torch's way, and the kernels'."""

from array import array
from collections.abc import Callable
from typing import Final

import click
import torch

from benchmarks.model import describe_torch, find_kernels, model_folder, read_shapes
from benchmarks.report import Comparison, Figure, interleaved, measuring, milliseconds
from sessions.engine.native.draw import NativePick
from sessions.engine.request import Request
from sessions.engine.sampler import Pick, pick_by_torch
from sessions.engine.schedule import Draw
from sessions.hashing import HashChain
from sessions.types import BlockHash, RequestId, SamplingParams

REFERENCE: Final = "torch"
ROWS: Final = (1, 8)
PARAMS: Final = {
    "greedy": SamplingParams(temperature=0),
    "temperature 1": SamplingParams(),
    "temperature 0.7, top-p 0.9": SamplingParams(temperature=0.7, top_p=0.9),
    "top-k 40": SamplingParams(top_k=40),
    "min-p 0.05": SamplingParams(min_p=0.05),
    "temperature 2, top-p 0.95": SamplingParams(temperature=2, top_p=0.95),
}
SPREAD: Final = 3.0
"""Standard deviation of the logits: of a trained model's about as many tokens count."""


@click.command()
@click.option("--model", default="default", show_default=True, help="Whose vocabulary; the logits are random.")
@click.option("--repeats", default=15, show_default=True)
@click.option("--quick", is_flag=True, help="Few repeats.")
@torch.inference_mode()
def draws(model: str, repeats: int, quick: bool) -> None:
    """Tokens drawn from logits, by parameters and rows: torch, kernels."""
    width = read_shapes(model_folder(model)).vocabulary
    with measuring(f"draws: {width} logits a row, {describe_torch()}"):
        kernels = find_kernels()
        picks: dict[str, Pick] = {REFERENCE: pick_by_torch}
        if kernels is not None:
            picks["kernels"] = NativePick(kernels)
        comparison = Comparison(list(picks))
        for name, params in PARAMS.items():
            for num_rows in ROWS:
                logits = torch.randn(num_rows, width, generator=torch.Generator().manual_seed(0)) * SPREAD
                asked = [draw(params, seed) for seed in range(num_rows)]
                functions = {subject: _call(pick, logits, asked) for subject, pick in picks.items()}
                for subject, seconds in interleaved(functions, min(repeats, 3) if quick else repeats).items():
                    comparison.add(Figure(f"{name}, {num_rows} rows", "ms"), subject, milliseconds(seconds))
        comparison.print()


def _call(pick: Pick, logits: torch.Tensor, asked: list[Draw]) -> Callable[[], None]:
    def call() -> None:
        pick(logits, asked)

    return call


def draw(params: SamplingParams, seed: int) -> Draw:
    """The first token of a request."""
    chain = HashChain(BlockHash(bytes(16)), 16)
    return Draw(0, Request(RequestId("r"), array("I", [1]), chain, params, 1, frozenset(), seed), ())
