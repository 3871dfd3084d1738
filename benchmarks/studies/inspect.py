"""Inspect: what KV of the loaded model looks like, as the engine itself says."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from benchmarks.spread import number
from benchmarks.study import Bench, NotMeasured, Part, Picture, Results, Study, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


async def measure(bench: Bench) -> Results:
    bench.progress.begin(1)
    if not bench.subject.traits.is_anaphora:
        raise NotMeasured("only this project's server tells how its KV is laid out")
    layout = await bench.subject.client.get("/cache/layout")
    if not layout["layers"]:
        raise NotMeasured("the server's model has no KV to show")
    bench.progress.tick()
    return {"model": bench.subject.model, "layout": layout}


def layer_bytes(layout: dict[str, Any], layer: dict[str, Any], heads: int) -> float:
    """K and V of one token in this layer, if `heads` heads had their own. Scales and padding are shared out evenly."""
    numbers = sum(one["kv_heads"] * (one["head_dim"] + one["value_head_dim"]) for one in layout["layers"])
    own = heads * (layer["head_dim"] + layer["value_head_dim"])
    return float(layout["bytes_per_token"] * own / numbers)


def token_bytes(layout: dict[str, Any], heads: str) -> float:
    """One token, if the layers' heads numbered as in the field `heads`."""
    return sum(layer_bytes(layout, layer, layer[heads]) for layer in layout["layers"])


def present(results: Results) -> Sequence[Part]:
    layout = results["layout"]
    layers = layout["layers"]
    rows = [
        ["layers", f"{len(layers)}"],
        ["heads that read, per layer", _values(layers, "heads")],
        ["heads with a K and a V of their own", _values(layers, "kv_heads")],
        ["numbers of one K", _values(layers, "head_dim")],
        ["numbers of one V", _values(layers, "value_head_dim")],
        ["layers with a sliding window", f"{sum(layer['sliding_window'] is not None for layer in layers)}"],
        ["type of a number", layout["dtype"]],
        ["one token", f"{layout['bytes_per_token']:,} bytes"],
        ["one block", f"{layout['block_size']} tokens, {layout['bytes_per_block'] / 1024:,.0f} KiB"],
        ["pool", f"{layout['pool_tokens']:,} tokens, {layout['pool_bytes'] / 2**30:.2f} GiB"],
        ["longest prompt with its reply", f"{layout['max_model_len']:,} tokens"],
        [
            "such prompts that fit the pool at once, sharing nothing",
            number(layout["pool_tokens"] / layout["max_model_len"]),
        ],
    ]
    return [
        Table([results["model"], ""], rows),
        Picture("inspect", "Bytes of one token.", lambda figure: draw(figure, results), 3.4),
    ]


def _values(layers: Sequence[dict[str, Any]], name: str) -> str:
    """The one value of all layers, or the range."""
    values = sorted({layer[name] for layer in layers})
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"


def draw(figure: "Figure", results: Results) -> None:
    from benchmarks.plots import BLUE, GREY, ORANGE, THOUSANDS, legend, tidy

    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    layout = results["layout"]
    layers, numbers = layout["layers"], range(1, len(layout["layers"]) + 1)
    sizes = [layer_bytes(layout, layer, layer["kv_heads"]) for layer in layers]
    keys = [
        size * layer["head_dim"] / (layer["head_dim"] + layer["value_head_dim"])
        for size, layer in zip(sizes, layers, strict=True)
    ]
    tidy(left, "One token, layer by layer", "layer", "bytes")
    left.bar(numbers, keys, color=BLUE, label="K")
    left.bar(numbers, [size - key for size, key in zip(sizes, keys, strict=True)], bottom=keys, color=ORANGE, label="V")
    legend(left)
    tidy(right, "One token, all layers", "", "KiB")
    kinds = {"a K and V\nper reading head": "heads", "grouped,\nas it is": "kv_heads"}
    values = [token_bytes(layout, heads) / 1024 for heads in kinds.values()]
    right.bar(list(kinds), values, 0.55, color=[GREY, BLUE])
    for place, value in enumerate(values):
        right.text(place, value, f"{value:,.1f}", ha="center", va="bottom", fontsize=9)
    right.set_ylim(0, max(values) * 1.12)
    right.yaxis.set_major_formatter(THOUSANDS)


STUDY: Final = Study(
    "inspect",
    "What a token takes",
    "What does the model keep of each token, and how many tokens has the pool room for?",
    "On the left what each layer keeps of one token. On the right all layers together, beside what they would keep if "
    "every head that reads had a K and a V of its own: grouping heads is what makes long prefixes affordable.",
    measure,
    present,
)
