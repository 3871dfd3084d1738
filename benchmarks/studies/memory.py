"""Memory: bytes of KV by length and architecture; blocks that N requests with one prefix hold, counted in the pool."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from benchmarks.architectures import ARCHITECTURES, Architecture
from benchmarks.sharing import expected_blocks, num_held_blocks
from benchmarks.spread import number
from benchmarks.study import Bench, Part, Picture, Results, Study, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIB: Final = 2**20
BLOCK_SIZE: Final = 16
"""Where the server does not say."""


async def measure(bench: Bench) -> Results:
    """The pool is the product's own, in this process, over a model that answers at once; its figures are exact."""
    sizes = bench.sizes
    bench.progress.begin(2 * len(sizes.sharers))
    loaded: dict[str, Any] | None = None
    if bench.subject.traits.is_anaphora:
        layout = await bench.subject.client.get("/cache/layout")
        loaded = {"name": bench.subject.model, **layout}
    block_size = loaded["block_size"] if loaded else BLOCK_SIZE
    counted = []
    for num_requests in sizes.sharers:
        row: dict[str, Any] = {"requests": num_requests}
        for name, shares in (("shared", True), ("apart", False)):
            asked = (num_requests, sizes.sharing_prefix, sizes.sharing_own, block_size)
            row[name] = await asyncio.to_thread(num_held_blocks, *asked, shares=shares)
            row[f"{name}_formula"] = expected_blocks(*asked, shares=shares)
            bench.progress.tick()
        counted.append(row)
    return {
        "loaded": loaded,
        "prefixes": list(sizes.prefixes),
        "prefix": sizes.sharing_prefix,
        "own": sizes.sharing_own,
        "block_size": block_size,
        "counted": counted,
    }


def present(results: Results) -> Sequence[Part]:
    loaded, prefixes = results["loaded"], results["prefixes"]
    rows = [[one.name, _heads(one), *_sizes(one.bytes_of(1), prefixes), _grouping(one)] for one in ARCHITECTURES]
    if loaded and loaded["bytes_per_token"]:
        own = [loaded["name"], f"here, {loaded['dtype']}", *_sizes(loaded["bytes_per_token"], prefixes), ""]
        rows.insert(0, own)
    counted = [
        [
            f"{row['requests']:,}",
            *(f"{row[name]:,}" for name in ("shared", "shared_formula", "apart", "apart_formula")),
            _block_bytes(results, row["shared"]),
            _block_bytes(results, row["apart"]),
            number(row["apart"] / row["shared"]) + "x",
        ]
        for row in results["counted"]
    ]
    headers = [f"{length:,} tokens" for length in prefixes]
    return [
        "KV in MiB by length of the prefix; two bytes a number, but for the model that is loaded here.",
        Table(["model", "layers x KV heads x size", "bytes a token", *headers, "saved by grouping"], rows),
        f"Requests side by side, {results['prefix']:,} tokens in common and {results['own']} of their own: blocks of "
        f"{results['block_size']} tokens that the pool counted as held, beside what the formula says.",
        Table(
            [
                "requests",
                "sharing: counted",
                "formula",
                "each its own: counted",
                "formula",
                "MiB sharing",
                "MiB each its own",
                "ratio",
            ],
            counted,
        ),
        Picture(
            "memory",
            "KV by length of the prefix, and blocks that requests with one prefix hold (both axes of the right picture "
            "are logarithmic).",
            lambda figure: draw(figure, results),
            4.2,
        ),
    ]


def _heads(one: Architecture) -> str:
    per_layer = f"{one.latent} latent" if one.latent else f"{one.kv_heads} x {one.head_dim}"
    return f"{one.layers} x {per_layer}"


def _grouping(one: Architecture) -> str:
    return "-" if one.grouping == 1 else number(one.grouping) + "x"


def _sizes(bytes_per_token: float, prefixes: Sequence[int]) -> list[str]:
    return [f"{bytes_per_token:,.0f}", *(number(length * bytes_per_token / MIB) for length in prefixes)]


def _block_bytes(results: Results, num_blocks: int) -> str:
    loaded = results["loaded"]
    return number(num_blocks * loaded["bytes_per_block"] / MIB) if loaded and loaded["bytes_per_block"] else "-"


def draw(figure: "Figure", results: Results) -> None:
    from benchmarks.plots import BLUE, CACHED, COMPUTED, GREY, INK, ORANGE, PURPLE, SKY, THOUSANDS, legend, tidy

    left, right = figure.subplots(1, 2)
    prefixes = results["prefixes"]
    shown = {one.name: one.bytes_of(1) for one in ARCHITECTURES}
    names = ("Llama 2 7B", "Llama 3.1 8B", "Qwen2.5 7B", "DeepSeek V3 (latent)", "SmolLM2 135M")
    tidy(left, "KV of one prefix", "tokens", "MiB")
    markers = "so^Dv"
    for name, colour, marker in zip(names, (GREY, BLUE, ORANGE, PURPLE, SKY), markers, strict=True):
        left.plot(
            prefixes, [n * shown[name] / MIB for n in prefixes], marker=marker, color=colour, label=name, linewidth=1.8
        )
    left.set_xlim(left=0)
    left.xaxis.set_major_formatter(THOUSANDS)
    left.legend(fontsize=8.5, frameon=False, loc="upper left")
    counted = results["counted"]
    requests = [row["requests"] for row in counted]
    tidy(right, "Blocks held: counted, and by formula", "requests with one prefix", "blocks")
    for name, label, colour, marker in (
        ("apart", "each its own", COMPUTED, "s"),
        ("shared", "sharing", CACHED, "o"),
    ):
        right.plot(requests, [row[f"{name}_formula"] for row in counted], color=INK, linewidth=0.8, linestyle="--")
        right.plot(requests, [row[name] for row in counted], marker, color=colour, label=label, markersize=7)
    right.plot([], [], color=INK, linewidth=0.8, linestyle="--", label="formula")
    right.set_xscale("log")
    right.set_yscale("log")
    right.xaxis.set_major_formatter(THOUSANDS)
    right.yaxis.set_major_formatter(THOUSANDS)
    legend(right)


STUDY: Final = Study(
    "memory",
    "What prefixes take, and what sharing saves",
    "How much memory does the KV of a prefix take, on this model and on known ones, and how much of it is saved where "
    "many requests share one?",
    "On the left KV grows in proportion to the prefix; the slope is the architecture's. On the right a shared prefix "
    "is held once, however many requests run: the marks are what the pool counted, the dashed lines what whole "
    "blocks of the prefix once, plus each request's own, come to.",
    measure,
    present,
)
