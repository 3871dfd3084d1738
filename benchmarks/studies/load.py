"""Load: sessions side by side in closed and in open loop, and a trace replayed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from benchmarks.load_run import LoadRun, poisson_starts, summary, trace_texts
from benchmarks.spread import Spread, number
from benchmarks.study import Bench, Part, Picture, Results, Study, Table, share_shown
from benchmarks.traces import TraceRequest, read_trace, shared_share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE_TOKENS: Final = 64
"""Room for what the template and the calibration's error add to a prompt of a trace."""


async def measure(bench: Bench) -> Results:
    sizes, load = bench.sizes, bench.load
    trace, left_out, best = await _trace(bench)
    num_requests = sizes.sessions * sizes.load_turns
    bench.progress.begin(2 * num_requests + len(trace))
    runs: dict[str, Any] = {}
    closed = LoadRun(bench)
    await closed.sessions([0.0] * sizes.sessions)
    runs["closed loop"] = summary(closed)
    opened = LoadRun(bench)
    await opened.sessions(poisson_starts(sizes.sessions, load.rate / sizes.load_turns, bench.seed))
    runs["open loop"] = summary(opened)
    if trace:
        replayed = LoadRun(bench)
        await replayed.replay(trace, trace_texts(trace, bench.prompts, bench.seed))
        runs["trace"] = summary(replayed)
    return {
        "runs": runs,
        "sessions": sizes.sessions,
        "turns": sizes.load_turns,
        "system_tokens": sizes.load_system,
        "reply_tokens": sizes.reply,
        "rate": load.rate,
        "think_time_s": load.think_time_s,
        "trace": {"file": load.trace.name, "left_out": left_out, "best_share": best} if load.trace else None,
    }


async def _trace(bench: Bench) -> tuple[list[TraceRequest], int, float | None]:
    """(what is replayed, how many were left out for their length, the share of its tokens that can be found)."""
    if bench.load.trace is None:
        return [], 0, None
    found = read_trace(bench.load.trace)[: bench.sizes.trace_requests]
    if not bench.subject.traits.is_anaphora:
        return found, 0, shared_share(found)
    longest = (await bench.subject.client.get("/cache/layout"))["max_model_len"] - TEMPLATE_TOKENS
    fitting = [request for request in found if request.num_input + request.num_output <= longest]
    return fitting, len(found) - len(fitting), shared_share(fitting)


def present(results: Results) -> Sequence[Part]:
    rows = [_row(name, run) for name, run in results["runs"].items()]
    headers = ["", "requests", "errors", "cached share", "requests/s", "reply tokens/s"]
    headers += [f"{figure} p{percent}, ms" for figure in ("TTFT", "ITL") for percent in (50, 95, 99)]
    late = max(run["latest_start_ms"] for run in results["runs"].values())
    parts: list[Part] = [
        f"{results['sessions']} sessions of {results['turns']} turns, {results['system_tokens']:,} tokens of system "
        f"prompt in common, replies of {results['reply_tokens']} tokens, {results['think_time_s']:g} s of thought "
        f"between turns. Closed loop: all begin at once. Open loop: sessions arrive by a Poisson process that makes "
        f"{results['rate']:g} requests per second. The latest request was sent {late:.0f} ms after its time.",
        Table(headers, rows),
        *_by_turn(results["runs"]),
    ]
    if trace := results["trace"]:
        best = "" if trace["best_share"] is None else f" At best {trace['best_share']:.0%} of its tokens can be found."
        parts.append(f"Trace {trace['file']}: {trace['left_out']} requests left out as too long for the model.{best}")
    if any("ttft_ms" in run for run in results["runs"].values()):
        caption = "Time to the first token: percentiles, and by turn of the session (bands are quartiles)."
        parts.append(Picture("load", caption, lambda figure: draw(figure, results)))
    return parts


def _by_turn(runs: dict[str, Any]) -> list[Part]:
    """The share of the prompt that was found, turn by turn."""
    known = {name: run["by_turn"] for name, run in runs.items() if len(run.get("by_turn", ())) > 1}
    if not known or any(run["cached_share"] is None for run in runs.values() if "cached_share" in run):
        return []
    turns = max(len(of) for of in known.values())
    rows = [[name, *(share_shown(row["cached_share"]) for row in of)] for name, of in known.items()]
    return [Table(["cached share by turn", *(f"turn {turn + 1}" for turn in range(turns))], rows)]


def _row(name: str, run: dict[str, Any]) -> list[str]:
    errors = ", ".join(f"{count} {kind}" for kind, count in run["errors"].items()) or "0"
    row = [name, f"{run['requests']}", errors]
    if "ttft_ms" not in run:
        return [*row, *["-"] * 9]
    figures = [
        number(run[figure][f"p{percent}"]) if run[figure] else "-"
        for figure in ("ttft_ms", "itl_ms")
        for percent in (50, 95, 99)
    ]
    rates = [number(run["requests_per_s"]), number(run["reply_tokens_per_s"])]
    return [*row, share_shown(run["cached_share"]), *rates, *figures]


def draw(figure: "Figure", results: Results) -> None:
    from benchmarks.plots import SERIES, legend, line, tidy

    left, right = figure.subplots(1, 2)
    runs = {name: run for name, run in results["runs"].items() if "ttft_ms" in run}
    tidy(left, "Time to first token", "", "ms")
    width = 0.8 / len(runs)
    for index, (name, run) in enumerate(runs.items()):
        places = [at - 0.4 + width * (index + 0.5) for at in range(3)]
        values = [run["ttft_ms"][f"p{percent}"] for percent in (50, 95, 99)]
        left.bar(places, values, width * 0.94, color=SERIES[index], label=name)
        for place, value in zip(places, values, strict=True):
            left.text(place, value, f"{value:,.0f}", ha="center", va="bottom", fontsize=7.5)
    left.set_xticks(range(3), ["p50", "p95", "p99"])
    left.set_ylim(0, max(run["ttft_ms"]["p99"] for run in runs.values()) * 1.12)
    legend(left)
    tidy(right, "By turn", "turn of the session", "TTFT, ms")
    for index, (name, run) in enumerate(runs.items()):
        spreads = [Spread.read(row["ttft_ms"]) for row in run["by_turn"]]
        turns = [row["turn"] + 1 for row in run["by_turn"]]
        if len(turns) > 1:
            line(right, turns, spreads, name, SERIES[index], "os^"[index])
            right.set_xticks(turns)
    legend(right)


STUDY: Final = Study(
    "load",
    "Under load",
    "How long does the first token take, and how much is found, when many sessions talk at once?",
    "p95 is what one request in twenty exceeds. In closed loop a slow server is asked less often, which flatters it; "
    "in open loop requests come whether it keeps up or not. From the second turn on only the new message is computed, "
    "and the first turns compute their common system prompt once.",
    measure,
    present,
)
