"""Weather: five questions about cities on one system prompt, with the cache and without."""

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from benchmarks.client import Messages
from benchmarks.spread import Spread, number
from benchmarks.study import Bench, Part, Picture, Results, Study, Table, share_shown, shown, spread_of
from benchmarks.subject import Sample, new_scope

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CITIES: Final = ("Lisbon", "Oslo", "Nairobi", "Kyoto", "Toronto")
RULES: Final = (
    "You are a weather assistant for travellers. You are given the name of a city, and you describe the weather that a "
    "visitor can expect there in the month of May: the usual temperature by day and by night, how often it rains, how "
    "strong the wind is, and which clothes to pack. Be friendly, be brief, and use plain words. Your notes follow. "
)


def conversation(notes: str, city: str) -> Messages:
    return [
        {"role": "system", "content": RULES + notes},
        {"role": "user", "content": f"The weather in {city}, please."},
    ]


async def measure(bench: Bench) -> Results:
    """Cached and not take turns, city by city; the first city of a round builds the cache."""
    sizes, prompts = bench.sizes, bench.prompts
    bench.progress.begin(sizes.rounds * len(CITIES) * 2)
    rounds: dict[str, list[list[Sample]]] = {"cached": [], "uncached": []}
    for _ in range(sizes.rounds):
        notes, shared = prompts.text(sizes.shared), new_scope()
        taken: dict[str, list[Sample]] = {name: [] for name in rounds}
        for city in CITIES:
            for name, scope in (("cached", shared), ("uncached", new_scope())):
                taken[name].append(await bench.subject.ask(conversation(notes, city), 1, scope))
                bench.progress.tick()
        for name, samples in taken.items():
            rounds[name].append(samples)
    return results_of(rounds)


def results_of(rounds: dict[str, list[list[Sample]]]) -> Results:
    totals = {name: [sum(sample.ttft_ms for sample in samples) for samples in of] for name, of in rounds.items()}
    speedups = [without / having for having, without in zip(totals["cached"], totals["uncached"], strict=True)]
    return {
        "cities": list(CITIES),
        "prompt_tokens": rounds["cached"][0][0].num_prompt_tokens,
        "cached_tokens": [sample.num_cached_tokens for sample in rounds["cached"][0]],
        "found_without": max(sample.cached_tokens for samples in rounds["uncached"] for sample in samples),
        "ttft_ms": {
            name: [spread_of([samples[at].ttft_ms for samples in of]) for at in range(len(CITIES))]
            for name, of in rounds.items()
        },
        "cumulative_ms": {
            name: [
                spread_of(column)
                for column in zip(*(accumulate(sample.ttft_ms for sample in samples) for samples in of), strict=True)
            ]
            for name, of in rounds.items()
        },
        "speedup": spread_of(speedups),
    }


def present(results: Results) -> Sequence[Part]:
    ttft, num_prompt, speedup = results["ttft_ms"], results["prompt_tokens"], shown(results["speedup"], "x")
    rows = [
        [
            city,
            "-" if cached is None else f"{cached:,}",
            share_shown(None if cached is None else cached / num_prompt),
            shown(having),
            shown(without),
            number(Spread.read(without).median / Spread.read(having).median) + "x",
        ]
        for city, cached, having, without in zip(
            results["cities"], results["cached_tokens"], ttft["cached"], ttft["uncached"], strict=True
        )
    ]
    return [
        f"All {len(rows)} answers begin {speedup} sooner, added up, the building of the cache by the first included. "
        f"A prompt has {num_prompt:,} tokens; without the cache at most {results['found_without']:,} were found.",
        Table(["city", "cached tokens", "share", "TTFT cached, ms", "TTFT not cached, ms", "ratio"], rows),
        Picture(
            "weather",
            "Time to the first token of each request, and added up over the requests.",
            lambda figure: draw(figure, results),
        ),
    ]


def draw(figure: "Figure", results: Results) -> None:
    from benchmarks.plots import CACHED, COMPUTED, bars, legend, line, tidy

    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    series = {
        label: [Spread.read(stored) for stored in results["ttft_ms"][name]]
        for name, label in (("cached", "with the cache"), ("uncached", "without"))
    }
    tidy(left, "Each request", "", "time to first token, ms")
    bars(left, results["cities"], series, (CACHED, COMPUTED))
    tidy(right, "Added up", "requests", "prefill time so far, ms")
    numbers = list(range(1, len(results["cities"]) + 1))
    for name, label, colour, marker in (
        ("cached", "with the cache", CACHED, "o"),
        ("uncached", "without", COMPUTED, "s"),
    ):
        line(right, numbers, [Spread.read(s) for s in results["cumulative_ms"][name]], label, colour, marker)
    right.set_xticks(numbers)
    legend(right)


STUDY: Final = Study(
    "weather",
    "Five cities on one system prompt",
    "What does a shared system prompt save when five travellers ask about five cities?",
    "The first cached bar is as tall as its neighbour: somebody has to build the cache. From the second on only the "
    "question is computed. The lines include that first build; where they part is what was saved.",
    measure,
    present,
)
