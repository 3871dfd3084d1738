"""Comprehensive: many trials of the same kind, cached and not: how times are distributed, not only where they lie."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from benchmarks.scenarios import conversation
from benchmarks.spread import Spread, number, percentile
from benchmarks.study import Bench, Part, Picture, Results, Study, Table, shown, spread_of
from benchmarks.subject import Sample, new_scope

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: Final = ("uncached", "cached")
LABELS: Final = {"uncached": "not cached", "cached": "cached"}


async def measure(bench: Bench) -> Results:
    """Each trial has a prompt of its own, sent twice with different questions; the replies have a set length."""
    sizes, prompts = bench.sizes, bench.prompts
    bench.progress.begin(2 * sizes.trials)
    samples: dict[str, list[Sample]] = {kind: [] for kind in KINDS}
    for _ in range(sizes.trials):
        text, scope = prompts.text(sizes.trial_prompt), new_scope()
        for kind in KINDS:
            messages = conversation(text, prompts.question())
            samples[kind].append(await bench.subject.ask(messages, sizes.reply, scope))
            bench.progress.tick()
    return {kind: _figures(of) for kind, of in samples.items()} | {"trials": sizes.trials}


def _figures(samples: Sequence[Sample]) -> dict[str, Any]:
    gaps_ms = [1000 * gap for sample in samples for gap in sample.gaps_s]
    rates = [rate for sample in samples if (rate := sample.tokens_per_s) is not None]
    return {
        "prompt_tokens": spread_of([sample.num_prompt_tokens for sample in samples]),
        "cached_tokens": spread_of([sample.cached_tokens for sample in samples]),
        "ttft_ms": spread_of([sample.ttft_ms for sample in samples]),
        "itl_ms": spread_of(gaps_ms) if gaps_ms else None,
        "tokens_per_s": spread_of(rates) if rates else None,
        "total_ms": spread_of([1000 * sample.total_s for sample in samples]),
    }


def present(results: Results) -> Sequence[Part]:
    rows = []
    for name, label in (
        ("prompt_tokens", "prompt, tokens"),
        ("cached_tokens", "of it cached, tokens"),
        ("ttft_ms", "TTFT, ms"),
        ("itl_ms", "ITL, ms between pieces"),
        ("tokens_per_s", "reply, tokens/s after the first"),
        ("total_ms", "whole reply, ms"),
    ):
        rows.append([label, *(shown(results[kind][name]) for kind in KINDS)])
    rows += [
        [f"TTFT p{percent}, ms", *(number(percentile(results[kind]["ttft_ms"]["samples"], percent)) for kind in KINDS)]
        for percent in (95, 99)
    ]
    return [
        Table([f"{results['trials']} trials each", *(LABELS[kind] for kind in KINDS)], rows),
        Picture(
            "comprehensive",
            "Share of requests whose first token had come by a time, and share of gaps between pieces no longer than a "
            "time.",
            lambda figure: draw(figure, results),
        ),
    ]


def draw(figure: "Figure", results: Results) -> None:
    from benchmarks.plots import CACHED, COMPUTED, THOUSANDS, legend, tidy

    for axes, name, title in zip(
        figure.subplots(1, 2), ("ttft_ms", "itl_ms"), ("Time to first token", "Between two pieces"), strict=True
    ):
        tidy(axes, title, "ms", "share of them, %")
        for kind, colour, style in (("cached", CACHED, "-"), ("uncached", COMPUTED, "--")):
            if results[kind][name] is None:
                continue
            samples = sorted(results[kind][name]["samples"])
            steps = [100 * (at + 1) / len(samples) for at in range(len(samples))]
            axes.step([0, *samples], [0, *steps], where="post", color=colour, linestyle=style, label=LABELS[kind], lw=2)
            middle = Spread.read(results[kind][name]).median
            axes.plot([middle], [50], "o", color=colour, markersize=6)
        axes.set_xlim(left=0)
        axes.set_ylim(0, 103)
        axes.xaxis.set_major_formatter(THOUSANDS)
        legend(axes)


STUDY: Final = Study(
    "comprehensive",
    "Many trials",
    "How are the times of cached and uncached requests distributed?",
    "A curve that climbs further to the left is faster; one that climbs steeply is steady. The dots are the medians. "
    "The cache shortens the time to the first token; the gaps after it are the same, or the reply would not be the "
    "same work. A piece may hold several tokens, where guesses were right.",
    measure,
    present,
)
