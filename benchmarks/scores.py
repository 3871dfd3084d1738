"""What logprobs cost a decoding step on the real model, beside none; and a scored prompt beside one that is not."""

from typing import Final

import click

from benchmarks.model import RandomPrompts, chosen, describe_torch, find_kernels, load_as, model_folder, read_shapes
from benchmarks.report import Comparison, Figure, measuring
from benchmarks.step import BareEngine
from sessions.engine.config import EngineConfig
from sessions.types import SamplingParams

ASKED: Final = {
    "none": SamplingParams(temperature=0),
    "drawn only": SamplingParams(temperature=0, num_logprobs=0),
    "top 20": SamplingParams(temperature=0, num_logprobs=20),
}
BATCHES: Final = (1, 4, 16)
QUICK_BATCHES: Final = (1, 4)
CONTEXT: Final = 64
PROMPT: Final = 256
QUICK_CONTEXT: Final = 16
QUICK_PROMPT: Final = 64


@click.command()
@click.option("--model", default="default", show_default=True)
@click.option("--arithmetic", default="fp16", show_default=True)
@click.option("--repeats", default=10, show_default=True, help="Of each figure, in turns.")
@click.option("--quick", is_flag=True, help="Small batches.")
def scores(model: str, arithmetic: str, repeats: int, quick: bool) -> None:
    """What logprobs cost: decode tokens/s, and prompt tokens/s with `echo`."""
    folder = model_folder(model)
    context, prompt = (QUICK_CONTEXT, QUICK_PROMPT) if quick else (CONTEXT, PROMPT)
    config = EngineConfig(num_blocks=2048, max_num_seqs=16, max_num_draft_tokens=0)
    with measuring(f"scores: {model}, {arithmetic}, {describe_torch()}"):
        (served,) = chosen([arithmetic])
        prompts = RandomPrompts(read_shapes(folder).vocabulary)
        engine = BareEngine(load_as(folder, served, find_kernels()), config, prompts)
        engine.prefill(prompt)
        comparison = Comparison(list(ASKED))
        for batch in QUICK_BATCHES if quick else BATCHES:
            figure = Figure(f"decode, batch {batch}, context {context}", "tokens/s", "rate")
            for _ in range(repeats):
                for name, params in ASKED.items():
                    comparison.add(figure, name, engine.decode(batch, context, 1, params))
        for _ in range(repeats):
            for name, params in ASKED.items():
                figure = Figure(f"prompt of {prompt} tokens", "tokens/s", "rate")
                is_scored = params.num_logprobs is not None
                comparison.add(figure, name, [engine.prefill(prompt, params, is_scored=is_scored)])
        comparison.print()
