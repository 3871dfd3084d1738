"""Peers: any number of servers side by side, the same prompts, the same run, taking turns."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from benchmarks.scenarios import conversation, go_on
from benchmarks.spread import Spread
from benchmarks.study import Bench, NotMeasured, Part, Picture, Results, Study, Table, shown, spread_of
from benchmarks.subject import Sample, Subject, new_scope

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: Final = {
    "cold_ms": "cold prompt: TTFT, ms",
    "prefill": "cold prompt: tokens/s",
    "warm_ms": "next turn: TTFT, ms",
    "warm_computed": "next turn: tokens computed",
    "decode": "reply: tokens/s",
    "prompt_tokens": "prompt tokens, as the server counts",
}
DRAWN: Final = {
    "cold_ms": ("Cold prompt", "time to first token, ms"),
    "warm_ms": ("Next turn", "time to first token, ms"),
    "decode": ("Reply", "tokens/s"),
}
MORE_IS_BETTER: Final = {"prefill", "decode"}
NOT_COMPARED: Final = {"prompt_tokens"}


async def measure(bench: Bench) -> Results:
    """Each round every server gets the same conversation; who begins changes from round to round."""
    if not bench.peers:
        raise NotMeasured("no --peer was given")
    sizes, servers = bench.sizes, [bench.subject, *bench.peers]
    bench.progress.begin(sizes.rounds * len(servers))
    samples: dict[str, list[dict[str, float]]] = {server.name: [] for server in servers}
    for turn in range(sizes.rounds):
        text, questions = bench.prompts.text(sizes.peer_prompt), [bench.prompts.question() for _ in range(2)]
        first = turn % len(servers)
        for server in servers[first:] + servers[:first]:
            samples[server.name].append(await _once(server, text, questions, sizes.reply))
            bench.progress.tick()
    return {
        "servers": {
            server.name: {"model": server.model, "figures": _figures(samples[server.name])} for server in servers
        }
    }


async def _once(server: Subject, text: str, questions: Sequence[str], reply: int) -> dict[str, float]:
    """A cold prompt with a reply, then the conversation's next turn."""
    scope, messages = new_scope(), conversation(text, questions[0])
    cold = await server.ask(messages, reply, scope)
    warm = await server.ask(go_on(messages, cold.text, questions[1]), 1, scope)
    return _values(cold, warm)


def _values(cold: Sample, warm: Sample) -> dict[str, float]:
    """By figure; what a server does not tell is left out."""
    values: dict[str, float] = {
        "cold_ms": cold.ttft_ms,
        "prefill": cold.num_prompt_tokens / cold.time_to_first_token_s,
        "warm_ms": warm.ttft_ms,
        "prompt_tokens": cold.num_prompt_tokens,
    }
    if warm.num_cached_tokens is not None:
        values["warm_computed"] = warm.num_prompt_tokens - warm.num_cached_tokens
    if cold.tokens_per_s is not None:
        values["decode"] = cold.tokens_per_s
    return values


def _figures(samples: Sequence[dict[str, float]]) -> dict[str, Any]:
    return {
        name: spread_of(of) if (of := [values[name] for values in samples if name in values]) else None
        for name in FIGURES
    }


def present(results: Results) -> Sequence[Part]:
    servers = results["servers"]
    reference, *others = servers
    headers = ["", reference]
    for name in others:
        headers += [name, "times better"]
    rows = []
    for figure, label in FIGURES.items():
        ours = servers[reference]["figures"][figure]
        row = [label, shown(ours)]
        for name in others:
            theirs = servers[name]["figures"][figure]
            row += [shown(theirs), _ratio(figure, ours, theirs)]
        rows.append(row)
    return [
        Table(headers, rows),
        Picture("peers", "Medians with quartiles, by server.", lambda figure: draw(figure, results)),
    ]


def _ratio(figure: str, ours: dict[str, Any] | None, theirs: dict[str, Any] | None) -> str:
    """How many times better the first server is: less time, fewer tokens computed, or more per second."""
    if figure in NOT_COMPARED or ours is None or theirs is None:
        return ""
    mine, other = Spread.read(ours).median, Spread.read(theirs).median
    if figure not in MORE_IS_BETTER:
        mine, other = other, mine
    return f"{mine / other:.2f}x" if other else ""


def draw(figure: "Figure", results: Results) -> None:
    from benchmarks.plots import SERIES, tidy

    names = list(results["servers"])
    for axes, (name, (label, unit)) in zip(figure.subplots(1, len(DRAWN)), DRAWN.items(), strict=True):
        tidy(axes, label, "", unit)
        spreads = [
            Spread.read(stored) if (stored := results["servers"][server]["figures"][name]) else None for server in names
        ]
        top = max((spread.high for spread in spreads if spread), default=1.0)
        for place, spread in enumerate(spreads):
            if spread is None:
                axes.text(place, 0, "not told", ha="center", va="bottom", fontsize=8)
                continue
            axes.bar(place, spread.median, 0.7, color=SERIES[place % len(SERIES)])
            axes.vlines(place, spread.low, spread.high, color="black", linewidth=1.2)
            axes.text(place, spread.high + top * 0.01, f"{spread.median:,.0f}", ha="center", va="bottom", fontsize=8)
        axes.set_xticks(range(len(names)), names)
        axes.set_ylim(0, top * 1.12)


STUDY: Final = Study(
    "peers",
    "Beside other servers",
    "How does this server compare with others on the same prompts?",
    "The first server is the reference; a ratio says how many times better it is than the other: less time, fewer "
    "tokens computed, or more tokens per second. Compare servers only where they run the same weights on the same "
    "cores, and nothing else runs. A dash is what a server does not tell.",
    measure,
    present,
)
