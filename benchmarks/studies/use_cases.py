"""Use cases: system prompts of three products, a growing chat, code completion at several cursors, an agent."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from openai import BadRequestError

from benchmarks.client import Messages
from benchmarks.material import AGENT_RULES, PRODUCTS, TASK, call, code_file, tools
from benchmarks.scenarios import conversation, go_on
from benchmarks.spread import Spread, number
from benchmarks.study import Bench, Part, Picture, Results, Study, Table, share_shown, shown, spread_of
from benchmarks.subject import Sample, new_scope

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPLY_TOKENS: Final = 8
TOKENS_PER_FUNCTION: Final = 75


class Pairs:
    """Requests of one use case: each sent where earlier ones are cached, and where nothing is. By its label."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._shared = new_scope()
        self.samples: list[tuple[str, Sample, Sample]] = []

    async def ask(self, label: str, messages: Messages, **fields: Any) -> Sample:
        """The reply of the cached one."""
        ask = self._bench.subject.ask
        uncached = await ask(messages, REPLY_TOKENS, new_scope(), **fields)
        cached = await ask(messages, REPLY_TOKENS, self._shared, **fields)
        self._bench.progress.tick()
        self.samples.append((label, cached, uncached))
        return cached


async def products(bench: Bench, pairs: Pairs) -> None:
    """Three system prompts, customers of all three in turn."""
    rules = {name: opening + bench.prompts.text(bench.sizes.case_shared) for name, opening in PRODUCTS.items()}
    for at in range(bench.sizes.product_questions):
        for name, text in rules.items():
            await pairs.ask(f"{name} {at + 1}", conversation(text, bench.prompts.question()))


async def chat(bench: Bench, pairs: Pairs) -> None:
    """A conversation; each turn repeats all before it and adds a question."""
    messages = conversation(bench.prompts.text(bench.sizes.case_shared // 4), bench.prompts.question(24))
    for turn in range(bench.sizes.turns):
        reply = await pairs.ask(f"turn {turn + 1}", messages)
        messages = go_on(messages, reply.text, bench.prompts.question(24))


async def code(bench: Bench, pairs: Pairs) -> None:
    """One file, completed at several places: the cursor comes after the file."""
    file = code_file(max(1, bench.sizes.case_shared // TOKENS_PER_FUNCTION))
    salt = bench.prompts.question(4)
    for cursor in range(bench.sizes.cursors):
        question = f"{file}\n\nContinue after line {7 * cursor + 3}."
        await pairs.ask(f"cursor {cursor + 1}", conversation(f"You complete code. {salt}", question))


async def agent(bench: Bench, pairs: Pairs) -> None:
    """Rules and tools with every request; each step adds a call and its result."""
    rules = AGENT_RULES + bench.prompts.text(bench.sizes.case_shared // 4)
    messages: list[Any] = conversation(rules, TASK)
    for step in range(bench.sizes.agent_steps):
        await pairs.ask(f"step {step + 1}", messages, tools=tools())
        said, identifier = call(step)
        result = {"role": "tool", "tool_call_id": identifier, "content": bench.prompts.question(40)}
        messages = [*messages, said, result]


CASES: Final[dict[str, Callable[[Bench, Pairs], Awaitable[None]]]] = {
    "products": products,
    "chat": chat,
    "code": code,
    "agent": agent,
}
TITLES: Final = {
    "products": "Three products in turn",
    "chat": "A chat, turn by turn",
    "code": "One file, several cursors",
    "agent": "An agent with tools",
}


async def measure(bench: Bench) -> Results:
    sizes = bench.sizes
    num_requests = len(PRODUCTS) * sizes.product_questions + sizes.turns + sizes.cursors + sizes.agent_steps
    bench.progress.begin(sizes.rounds * num_requests)
    rounds: dict[str, list[Pairs]] = {name: [] for name in CASES}
    refused: dict[str, str] = {}
    for _ in range(sizes.rounds):
        for name, case in CASES.items():
            pairs = Pairs(bench)
            try:
                await case(bench, pairs)
            except BadRequestError as error:
                refused[name] = str(error)
                continue
            rounds[name].append(pairs)
    cases = {name: _figures(of) for name, of in rounds.items() if of and name not in refused}
    return {"cases": cases, "refused": refused}


def _figures(rounds: Sequence[Pairs]) -> dict[str, Any]:
    """By request, over the rounds; and all requests of a round added up."""
    requests = []
    for at, (label, *_) in enumerate(rounds[0].samples):
        cached = [pairs.samples[at][1] for pairs in rounds]
        uncached = [pairs.samples[at][2] for pairs in rounds]
        requests.append(
            {
                "label": label,
                "prompt_tokens": spread_of([sample.num_prompt_tokens for sample in cached]),
                "cached_tokens": spread_of([sample.cached_tokens for sample in cached]),
                "cached_ms": spread_of([sample.ttft_ms for sample in cached]),
                "uncached_ms": spread_of([sample.ttft_ms for sample in uncached]),
            }
        )
    sums = [
        (sum(cached.ttft_ms for _, cached, _ in pairs.samples), sum(uncached.ttft_ms for *_, uncached in pairs.samples))
        for pairs in rounds
    ]
    return {
        "requests": requests,
        "says_cached": all(pair[1].num_cached_tokens is not None for pairs in rounds for pair in pairs.samples),
        "share": spread_of([_share(pairs) for pairs in rounds]),
        "cached_ms": spread_of([cached for cached, _ in sums]),
        "uncached_ms": spread_of([uncached for _, uncached in sums]),
        "speedup": spread_of([uncached / cached for cached, uncached in sums]),
    }


def _share(pairs: Pairs) -> float:
    """Of all prompt tokens."""
    total = sum(cached.num_prompt_tokens for _, cached, _ in pairs.samples)
    return sum(cached.cached_tokens for _, cached, _ in pairs.samples) / total


def present(results: Results) -> Sequence[Part]:
    rows = [
        [
            TITLES[name],
            f"{len(of['requests'])}",
            share_shown(Spread.read(of["share"]).median if of["says_cached"] else None),
            shown(of["uncached_ms"]),
            shown(of["cached_ms"]),
            shown(of["speedup"], "x"),
        ]
        for name, of in results["cases"].items()
    ]
    parts: list[Part] = [
        Table(
            ["use case", "requests", "cached share", "TTFT not cached, ms in all", "cached, ms in all", "times sooner"],
            rows,
        ),
        Picture(
            "use_cases",
            "Prompt tokens of each request, found and computed; the cacheable share stands over the bars.",
            lambda figure: draw(figure, results),
            6.4,
        ),
    ]
    return [*parts, *(f"“{TITLES[name]}” was refused: {reason}" for name, reason in results["refused"].items())]


def draw(figure: "Figure", results: Results) -> None:
    from benchmarks.plots import CACHED, COMPUTED, HATCH, legend, percent, tidy

    grid = figure.subplots(2, 2).flatten()
    for axes, (name, of) in zip(grid, results["cases"].items(), strict=False):
        speedup = number(Spread.read(of["speedup"]).median)
        tidy(axes, f"{TITLES[name]}: {speedup}x sooner", "", "prompt tokens")
        places = range(len(of["requests"]))
        cached = [Spread.read(row["cached_tokens"]).median for row in of["requests"]]
        total = [Spread.read(row["prompt_tokens"]).median for row in of["requests"]]
        new = [all_of_it - have for all_of_it, have in zip(total, cached, strict=True)]
        axes.bar(places, cached, color=CACHED, label="cached")
        axes.bar(
            places, new, bottom=cached, color=COMPUTED, hatch=HATCH, edgecolor="white", linewidth=0, label="computed"
        )
        for place, (have, all_of_it) in enumerate(zip(cached, total, strict=True)):
            axes.text(place, all_of_it, percent(have, all_of_it), ha="center", va="bottom", fontsize=7.5)
        labels = [row["label"] for row in of["requests"]]
        crowded = len(labels) > 6
        axes.set_xticks(places, labels, rotation=60 if crowded else 0, fontsize=8, ha="right" if crowded else "center")
        axes.set_ylim(0, max(total) * 1.12)
    for axes in grid[len(results["cases"]) :]:
        axes.set_visible(False)
    legend(grid[0])


STUDY: Final = Study(
    "use_cases",
    "Four ways to use a prefix",
    "How much of their prompts do usual applications share, and what does it save them?",
    "Products: the first question of each builds its system prompt, all others find it, whoever asked in between. "
    "Chat: the share rises with every turn, for only the newest message is new. Code: the file is found at every "
    "cursor, for the cursor stands after it. Agent: rules, tools and all earlier results are found; only the newest "
    "call and its result are computed.",
    measure,
    present,
)
