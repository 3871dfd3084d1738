"""Ordering: the same content with what prompts share at the front, or at the end; and what rendering can mend."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from openai import BadRequestError

from benchmarks.client import Messages
from benchmarks.spread import Spread
from benchmarks.study import Bench, Part, Picture, Results, Study, Table, share_shown, shown, spread_of
from benchmarks.subject import Sample, new_scope

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES: Final = ("Ada", "Boris", "Chen", "Dora", "Emil", "Fatou", "Goran", "Hana")


@dataclass(frozen=True, slots=True)
class Content:
    """rules: what all requests share. note, question: what is this request's own."""

    rules: str
    note: str
    question: str


def shared_first(content: Content) -> Messages:
    return [
        {"role": "system", "content": content.rules},
        {"role": "user", "content": f"{content.note}\n\n{content.question}"},
    ]


def shared_last(content: Content) -> Messages:
    return [
        {"role": "system", "content": f"{content.note}\n\n{content.rules}"},
        {"role": "user", "content": content.question},
    ]


def marked(content: Content) -> Messages:
    """As `shared_last`, in parts, with the end of what is shared marked: `--stable-first` puts it to the front."""
    rules: Any = {"type": "text", "text": content.rules, "prompt_cache_breakpoint": {"mode": "explicit"}}
    return [
        {"role": "system", "content": [{"type": "text", "text": f"{content.note}\n\n"}, rules]},
        {"role": "user", "content": content.question},
    ]


def system_late(content: Content) -> Messages:
    """The rules come after the question they are about: canonical order takes system messages to the front."""
    return [
        {"role": "user", "content": f"{content.note}\n\n{content.question}"},
        {"role": "system", "content": content.rules},
    ]


ARRANGEMENTS: Final[dict[str, Callable[[Content], Messages]]] = {
    "shared content first": shared_first,
    "shared content last": shared_last,
    "last, but marked": marked,
    "last, as a system message": system_late,
}


async def measure(bench: Bench) -> Results:
    """Arrangements take turns, request by request. An arrangement that the server refuses is left out, and why."""
    sizes, prompts = bench.sizes, bench.prompts
    bench.progress.begin(sizes.rounds * sizes.questions * len(ARRANGEMENTS))
    samples: dict[str, list[Sample]] = {name: [] for name in ARRANGEMENTS}
    refused: dict[str, str] = {}
    for _ in range(sizes.rounds):
        rules, scopes = prompts.text(sizes.shared), {name: new_scope() for name in ARRANGEMENTS}
        for at in range(sizes.questions):
            note = f"It is minute {at}. The reader is {NAMES[at % len(NAMES)]}."
            content = Content(rules, note, prompts.question())
            for name, arrange in ARRANGEMENTS.items():
                bench.progress.tick()
                try:
                    sample = await bench.subject.ask(arrange(content), 1, scopes[name])
                except BadRequestError as error:
                    refused[name] = str(error)
                    continue
                if at:  # the first has nothing to share yet
                    samples[name].append(sample)
    return {
        "arrangements": {name: _figures(of) for name, of in samples.items() if of and name not in refused},
        "refused": refused,
        "moved": {name: of[0].anaphora.get("moved", []) for name, of in samples.items() if of},
    }


def _figures(samples: Sequence[Sample]) -> dict[str, Any]:
    return {
        "prompt_tokens": spread_of([sample.num_prompt_tokens for sample in samples]),
        "cached_tokens": spread_of([sample.cached_tokens for sample in samples]),
        "says_cached": all(sample.num_cached_tokens is not None for sample in samples),
        "ttft_ms": spread_of([sample.ttft_ms for sample in samples]),
    }


def present(results: Results) -> Sequence[Part]:
    rows = []
    for name, of in results["arrangements"].items():
        prompt, cached = Spread.read(of["prompt_tokens"]), Spread.read(of["cached_tokens"])
        moved = "; ".join(f"{move['from']} → {move['to']}" for move in results["moved"].get(name, []))
        rows.append(
            [
                name,
                f"{prompt.median:,.0f}",
                f"{cached.median:,.0f}" if of["says_cached"] else "-",
                share_shown(cached.median / prompt.median if of["says_cached"] else None),
                shown(of["ttft_ms"]),
                moved or "nothing",
            ]
        )
    parts: list[Part] = [
        Table(["order", "prompt tokens", "shared and cached", "share", "TTFT, ms", "moved by rendering"], rows),
        Picture(
            "ordering",
            "Tokens of a prompt that were cached and computed, and the time to its first token, by order of the same "
            "content.",
            lambda figure: draw(figure, results),
            3.4,
        ),
    ]
    return [*parts, *(f"“{name}” was refused: {reason}" for name, reason in results["refused"].items())]


def draw(figure: "Figure", results: Results) -> None:
    from benchmarks.plots import BLUE, THOUSANDS, legend, shares, tidy

    left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    of = results["arrangements"]
    cached = [Spread.read(row["cached_tokens"]).median for row in of.values()]
    totals = [Spread.read(row["prompt_tokens"]).median for row in of.values()]
    tidy(left, "Prompt tokens", "tokens", "")
    tidy(right, "Time to first token", "ms", "")
    shares(left, list(of), cached, [total - have for have, total in zip(cached, totals, strict=True)])
    legend(left)
    spreads = [Spread.read(row["ttft_ms"]) for row in of.values()]
    right.barh(range(len(spreads)), [spread.median for spread in spreads], 0.62, color=BLUE)
    for row, spread in enumerate(spreads):
        right.hlines(row, spread.low, spread.high, color="black", linewidth=1.2)
    right.xaxis.set_major_formatter(THOUSANDS)
    right.set_xlim(left=0)
    right.grid(axis="x", color="#DDDDDD", linewidth=0.7)
    right.grid(axis="y", visible=False)


STUDY: Final = Study(
    "ordering",
    "What stands first",
    "What does it cost to put what changes before what is shared, and which of the wrong orders does rendering mend?",
    "Green is what was found, red what had to be computed. The first two bars hold the same words in two orders. The "
    "last two send them in the wrong order too: marked, which `--stable-first` moves, and as a system message after "
    "the question, which canonical order moves always. The first request of each round, which finds nothing, is left "
    "out.",
    measure,
    present,
)
