"""Scaling: time to the first token against the length of the prefix, cached and not."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from openai import BadRequestError

from benchmarks.client import Messages
from benchmarks.spread import Spread
from benchmarks.study import Bench, NotMeasured, Part, Picture, Results, Study, Table, shown, spread_of
from benchmarks.subject import Sample, new_scope

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pairs = list[tuple[Sample, Sample]]
"""(not cached, cached)."""
CALIBRATION_ERROR: Final = 100
"""One part in so many: how far a prompt of random words may be from the length that is wanted."""
ROOM: Final = 16
"""For a reply, and the words that tell two questions apart."""


async def measure(bench: Bench) -> Results:
    """Prompts of set lengths, and one prompt repeated. A length the server refuses as too long is left out."""
    sizes, prompts = bench.sizes, bench.prompts
    base, lengths = prompts.text(sizes.base), await _lengths(bench)
    bench.progress.begin(sizes.rounds * (len(sizes.multiples) + len(lengths)))
    series: dict[str, dict[int, Pairs]] = {"multiples": {}, "lengths": {}}
    too_long: list[str] = []
    for _ in range(sizes.rounds):
        for times in sizes.multiples:
            text = " ".join([base] * times)
            await _pair(bench, series["multiples"].setdefault(times, []), text, prompts.question(), too_long)
        for length in lengths:
            text = str(prompts.draw(length)[0]["content"])
            await _pair(bench, series["lengths"].setdefault(length, []), text, prompts.question(), too_long)
    measured = {name: [_row(at, pairs) for at, pairs in of.items() if pairs] for name, of in series.items()}
    if not (measured["multiples"] and measured["lengths"]):
        raise NotMeasured("the server refused prompts of every length")
    return {"series": measured, "refused": sorted(set(too_long))}


async def _lengths(bench: Bench) -> list[int]:
    """Those that are asked for; in place of longer ones the longest that the server takes, if it tells."""
    longest = max(bench.sizes.lengths)
    if bench.subject.traits.is_anaphora:
        context = (await bench.subject.client.get("/cache/layout"))["max_model_len"]
        longest = min(longest, context - context // CALIBRATION_ERROR - ROOM)
    return sorted({min(length, longest) for length in bench.sizes.lengths})


async def _pair(bench: Bench, pairs: Pairs, text: str, question: str, too_long: list[str]) -> None:
    """The prompt with one question, then with another."""
    scope = new_scope()
    bench.progress.tick()
    try:
        cold = await bench.subject.ask(_conversation(text, f"{question} One."), 1, scope)
        warm = await bench.subject.ask(_conversation(text, f"{question} Two."), 1, scope)
    except BadRequestError as error:
        too_long.append(str(error))
        return
    pairs.append((cold, warm))


def _conversation(text: str, question: str) -> Messages:
    return [{"role": "system", "content": text}, {"role": "user", "content": question}]


def _row(at: int, pairs: Pairs) -> dict[str, Any]:
    return {
        "at": at,
        "prompt_tokens": pairs[0][0].num_prompt_tokens,
        "cached_tokens": pairs[0][1].num_cached_tokens,
        "uncached_ms": spread_of([cold.ttft_ms for cold, _ in pairs]),
        "cached_ms": spread_of([warm.ttft_ms for _, warm in pairs]),
        "speedup": spread_of([cold.ttft_ms / warm.ttft_ms for cold, warm in pairs]),
    }


def present(results: Results) -> Sequence[Part]:
    rows = [
        [
            f"{row['at']}x" if name == "multiples" else f"{row['at']:,} tokens",
            f"{row['prompt_tokens']:,}",
            "-" if row["cached_tokens"] is None else f"{row['cached_tokens']:,}",
            shown(row["uncached_ms"]),
            shown(row["cached_ms"]),
            shown(row["speedup"], "x"),
        ]
        for name, of in results["series"].items()
        for row in of
    ]
    parts: list[Part] = [
        Table(
            ["prompt", "tokens", "cached", "TTFT not cached, ms", "TTFT cached, ms", "times sooner"],
            rows,
        ),
        Picture(
            "scaling",
            "Time to the first token by length of the prompt, and how many times sooner it comes when all but the "
            "question is cached. Bands are quartiles.",
            lambda figure: draw(figure, results),
        ),
    ]
    return [*parts, *(f"Left out, for the server refused it: {reason}" for reason in results["refused"])]


def draw(figure: "Figure", results: Results) -> None:
    from benchmarks.plots import BLUE, CACHED, COMPUTED, ORANGE, THOUSANDS, legend, line, tidy

    left, right = figure.subplots(1, 2)
    tidy(left, "Time to first token, random text", "prompt, tokens", "ms")
    rows = results["series"]["lengths"]
    lengths = [row["prompt_tokens"] for row in rows]
    line(left, lengths, [Spread.read(row["uncached_ms"]) for row in rows], "not cached", COMPUTED, "s")
    line(left, lengths, [Spread.read(row["cached_ms"]) for row in rows], "cached", CACHED)
    tidy(right, "Times sooner", "prompt, tokens", "not cached / cached")
    for name, label, colour, marker in (
        ("lengths", "random text", BLUE, "o"),
        ("multiples", "one text, repeated", ORANGE, "^"),
    ):
        of = results["series"][name]
        line(
            right, [row["prompt_tokens"] for row in of], [Spread.read(r["speedup"]) for r in of], label, colour, marker
        )
    right.axhline(1, color="#8A8A8A", linewidth=1, linestyle=":")
    for axes in (left, right):
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(THOUSANDS)
        legend(axes)


STUDY: Final = Study(
    "scaling",
    "The longer the prefix",
    "How do the time to the first token and what the cache saves of it grow with the length of the prefix?",
    "Without the cache the time grows with every token, and with their square once attention dominates. With it only "
    "the question is computed, and the line stays nearly flat. Below the dotted line the cache would cost more than "
    "it saves.",
    measure,
    present,
)
