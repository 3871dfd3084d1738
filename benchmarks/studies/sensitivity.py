"""Sensitivity: what one changed character, space or date of a prompt loses, and what the server says about it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from benchmarks.client import Messages
from benchmarks.scenarios import conversation
from benchmarks.spread import Spread
from benchmarks.study import Bench, Part, Picture, Results, Study, Table, shown, spread_of
from benchmarks.subject import Sample, new_scope

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPENING: Final = "You are the assistant of a library. Today is 2026-11-24. You answer from these notes."
MAX_CELLS: Final = 500
"""More tokens than that make cells too narrow to be seen."""
QUESTION: Final = "Where do I find the atlas?"


def variants(notes: str) -> dict[str, tuple[str, str]]:
    """By what is changed: the system message and the question."""
    half, text = len(notes) // 2, f"{OPENING} {notes}"
    return {
        "nothing": (text, QUESTION),
        "the question, at the end": (text, "Where do I find the globe?"),
        "one character, late": (f"{text[:-2]}x{text[-1]}", QUESTION),
        "one character, in the middle": (f"{OPENING} {notes[:half]}x{notes[half + 1 :]}", QUESTION),
        "one space more, in the middle": (f"{OPENING} {notes[:half].rstrip()}  {notes[half:].lstrip()}", QUESTION),
        "the date, near the beginning": (text.replace("2026-11-24", "2026-11-25"), QUESTION),
        "the first letter": (text.replace("You", "you", 1), QUESTION),
    }


async def measure(bench: Bench) -> Results:
    """Each variant is asked after the original, where nothing else was asked before; in every round the same prompt."""
    sizes, prompts = bench.sizes, bench.prompts
    names = list(variants(""))
    bench.progress.begin(sizes.rounds * len(names))
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    said: dict[str, dict[str, Any]] = {}
    notes = prompts.question(sizes.edited)
    original = conversation(f"{OPENING} {notes}", QUESTION)
    for _ in range(sizes.rounds):
        for name, (system, question) in variants(notes).items():
            scope, changed = new_scope(), conversation(system, question)
            await bench.subject.ask(original, 1, scope)
            if bench.subject.traits.is_anaphora:
                said[name] = await _explained(bench, changed, scope)
            samples[name].append(await bench.subject.ask(changed, 1, scope))
            bench.progress.tick()
    return {"variants": {name: _figures(of) for name, of in samples.items()}, "said": said}


async def _explained(bench: Bench, messages: Messages, scope: str) -> dict[str, Any]:
    """What the explainer says of a request before it is sent."""
    subject = bench.subject
    found = await subject.client.post("/cache/explain", subject.scoped(messages, scope), **subject.salt(scope))
    at = found.get("divergence") or {}
    return {
        "class": found["class"],
        "token": at.get("token"),
        "param": at.get("param"),
        "offset": at.get("offset"),
        "before": at.get("before"),
        "now": at.get("now"),
        "then": at.get("then"),
        "advice": found.get("advice", ""),
    }


def _figures(samples: Sequence[Sample]) -> dict[str, Any]:
    return {
        "prompt_tokens": spread_of([sample.num_prompt_tokens for sample in samples]),
        "cached_tokens": spread_of([sample.cached_tokens for sample in samples]),
        "lost_tokens": spread_of([sample.num_prompt_tokens - sample.cached_tokens for sample in samples]),
        "ttft_ms": spread_of([sample.ttft_ms for sample in samples]),
        "says_cached": all(sample.num_cached_tokens is not None for sample in samples),
    }


def present(results: Results) -> Sequence[Part]:
    rows = []
    for name, of in results["variants"].items():
        knows = of["says_cached"]
        rows.append(
            [
                name,
                f"{Spread.read(of['prompt_tokens']).median:,.0f}",
                f"{Spread.read(of['cached_tokens']).median:,.0f}" if knows else "-",
                shown(of["lost_tokens"]) if knows else "-",
                shown(of["ttft_ms"]),
            ]
        )
    parts: list[Part] = [
        Table(["what is changed", "prompt tokens", "still found", "computed", "TTFT, ms"], rows),
        Picture(
            "sensitivity",
            "The prompt's tokens from the first to the last, one cell each: found in the cache (plain), to be computed "
            "(hatched); the last token of any prompt is computed for its logits.",
            lambda figure: draw(figure, results),
            3.6,
        ),
    ]
    if results["said"]:
        parts.append("What the explainer says of each before it is sent:")
        parts.append(Table(["what is changed", "class", "parts at", "what it says"], _said(results["said"])))
    return parts


def _said(said: dict[str, dict[str, Any]]) -> list[list[str]]:
    rows = []
    for name, of in said.items():
        place = "-" if of["token"] is None else f"token {of['token']:,}, character {of['offset']:,} of {of['param']}"
        words = "" if of["now"] is None else f"…{of['before'][-16:]}[{of['now'][:12]}] was [{of['then'][:12]}]. "
        rows.append([name, of["class"], place, (words + of["advice"]).strip() or "nothing"])
    return rows


def draw(figure: "Figure", results: Results) -> None:
    from benchmarks.plots import legend, shares, tidy

    axes = figure.subplots()
    of = results["variants"]
    cached = [Spread.read(row["cached_tokens"]).median for row in of.values()]
    total = [Spread.read(row["prompt_tokens"]).median for row in of.values()]
    tidy(axes, "Where each prompt leaves the original", "token of the prompt", "")
    shares(axes, list(of), cached, [count - have for count, have in zip(total, cached, strict=True)])
    if max(total) <= MAX_CELLS:
        for cell in range(1, int(max(total))):
            axes.axvline(cell, color="white", linewidth=0.4, alpha=0.6)
    legend(axes)


STUDY: Final = Study(
    "sensitivity",
    "One character",
    "What does a change of one character, one space or one date in a prompt lose?",
    "Everything after the first token that differs has other keys and values and must be computed, however alike it "
    "looks. The same edit costs nothing at the end and everything at the beginning. A space can do more than a letter: "
    "it may change how the words around it are split into tokens.",
    measure,
    present,
)
