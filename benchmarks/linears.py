"""Packed linears (`sessions/engine/linear.py`) beside `F.linear`, by rows: a whole model's layers, and its LM head."""

from collections.abc import Callable, Sequence
from typing import Final

import click
import torch
from torch.nn.functional import linear

from benchmarks.model import Shapes, describe_torch, find_kernels, model_folder, read_shapes
from benchmarks.report import Comparison, Figure, interleaved, measuring, milliseconds
from sessions.engine.linear import Linear, Quantization, can_pack
from sessions.engine.native.kernels import Kernels

REFERENCE: Final = "F.linear"
ROWS: Final = (1, 4, 8, 16, 64, 256, 1024)
QUICK_ROWS: Final = (1, 8, 64)
HEAD_ROWS: Final = 64
"""The LM head computes sampled rows only: never more than run at once."""

Weights = list[list[torch.nn.Linear]]
"""Fused groups in the order they run; the members of one group share their input."""


@click.command()
@click.option("--model", default="default", show_default=True, help="Whose shapes; the weights are random.")
@click.option("--repeats", default=9, show_default=True)
@click.option("--quick", is_flag=True, help="Few rows, few repeats.")
@torch.inference_mode()
def linears(model: str, repeats: int, quick: bool) -> None:
    """Linear layers by rows: F.linear, none, fp16, int8."""
    shapes = read_shapes(model_folder(model))
    rows, repeats = (QUICK_ROWS, min(repeats, 3)) if quick else (ROWS, repeats)
    with measuring(f"linears: {shapes.num_layers} layers and the head of {model}, {describe_torch()}"):
        kernels = find_kernels()
        modes = usable_modes(kernels)
        comparison = Comparison([REFERENCE, *modes])
        torch.manual_seed(0)
        layers = [group for _ in range(shapes.num_layers) for group in layer_groups(shapes)]
        head = [[torch.nn.Linear(shapes.hidden, shapes.vocabulary, bias=False)]]
        for what, weights, largest in (("layers", layers, max(rows)), ("head", head, HEAD_ROWS)):
            subjects = {mode: pack(weights, mode, kernels) for mode in modes}
            for num_rows in (count for count in rows if count <= largest):
                inputs = make_inputs(weights, num_rows)
                functions: dict[str, Callable[[], None]] = {REFERENCE: plain(weights, inputs)}
                functions |= {mode: run(packed, inputs) for mode, packed in subjects.items()}
                figure = Figure(f"{what}, {num_rows} rows", "ms")
                for subject, seconds in interleaved(functions, repeats).items():
                    comparison.add(figure, subject, milliseconds(seconds))
        comparison.print()


def usable_modes(kernels: Kernels | None) -> list[Quantization]:
    modes: list[Quantization] = ["none"]
    if can_pack():
        modes.append("fp16")
    if kernels is not None:
        modes.append("int8")
    return modes


def layer_groups(shapes: Shapes) -> Weights:
    """One layer's: q, k and v; the attention's output; gate and up; down."""
    attention = shapes.num_heads * shapes.head_dim
    key_value = shapes.num_kv_heads * shapes.head_dim

    def group(inputs: int, *outputs: int) -> list[torch.nn.Linear]:
        return [torch.nn.Linear(inputs, size, bias=False) for size in outputs]

    return [
        group(shapes.hidden, attention, key_value, key_value),
        group(attention, shapes.hidden),
        group(shapes.hidden, shapes.intermediate, shapes.intermediate),
        group(shapes.intermediate, shapes.hidden),
    ]


def pack(weights: Weights, mode: Quantization, kernels: Kernels | None) -> list[Linear]:
    packed = [Linear([(part.weight, part.bias) for part in group]) for group in weights]
    for layer in packed:
        layer.pack(mode, kernels)
    return packed


def make_inputs(weights: Weights, num_rows: int) -> list[torch.Tensor]:
    """One per group; groups of one width share theirs."""
    by_width = {group[0].in_features: torch.randn(num_rows, group[0].in_features) for group in weights}
    return [by_width[group[0].in_features] for group in weights]


def plain(weights: Weights, inputs: Sequence[torch.Tensor]) -> Callable[[], None]:
    """F.linear, one call per weight, as a model's own modules do."""

    def call() -> None:
        for group, x in zip(weights, inputs, strict=True):
            for member in group:
                linear(x, member.weight)

    return call


def run(layers: Sequence[Linear], inputs: Sequence[torch.Tensor]) -> Callable[[], None]:
    def call() -> None:
        for layer, x in zip(layers, inputs, strict=True):
            layer(x)

    return call
