"""Manager: hits, misses and tokens saved, tier by tier, over a mixed workload that is larger than the pool."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.client import Messages
from benchmarks.scenarios import conversation, go_on
from benchmarks.study import Bench, Part, Picture, Results, Study, Table, share_shown, shown, spread_of
from benchmarks.subject import Sample, Subject, new_scope

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPLY_TOKENS: Final = 8
APPS: Final = 3
NEW_SESSION: Final = 0.25
ONE_SHOT: Final = 0.2
"""Shares of requests; the others go on with a session that began earlier."""
MAX_TURNS: Final = 6
HIT: Final = 0.5
"""Of a prompt; less is what any two prompts share, the template's first words."""
COUNTERS: Final = {
    "prefix_cache_queries": "prompt tokens looked up",
    "prefix_cache_hits": "of them found",
    "disk_loaded_tokens": "of these loaded from disk",
    "num_evicted_blocks": "blocks evicted from the pool",
    "disk_written_blocks": "blocks written to disk",
    "num_preemptions": "requests preempted",
}
PREFIX: Final = "anaphora_"


@dataclass(slots=True)
class Asked:
    """One request of the workload. The sessions' messages grow with each."""

    kind: str
    messages: Messages
    turns: int = 1


class Workload:
    """Apps with system prompts, sessions on them that come back, and documents that are asked about once."""

    def __init__(self, bench: Bench) -> None:
        self._prompts = bench.prompts
        self._shared = bench.sizes.shared
        self._random = random.Random(bench.seed)  # noqa: S311 - repeatable, not secret
        self._apps = [bench.prompts.text(self._shared // 2) for _ in range(APPS)]
        self._sessions: list[Asked] = []

    def draw(self) -> Asked:
        drawn = self._random.random()
        if drawn < ONE_SHOT:
            return Asked("one-shot", conversation(self._prompts.text(self._shared), self._prompts.question()))
        if drawn < ONE_SHOT + NEW_SESSION or not self._sessions:
            document = self._prompts.text(self._shared // 4)
            opened = Asked("new session", conversation(self._random.choice(self._apps), document))
            self._sessions.append(opened)
            return opened
        return self._random.choice(self._sessions)

    def heard(self, asked: Asked, reply: str) -> None:
        """The session's next turn is made."""
        asked.messages = go_on(asked.messages, reply, self._prompts.question(24))
        asked.kind, asked.turns = "next turn", asked.turns + 1
        if asked.turns > MAX_TURNS and asked in self._sessions:
            self._sessions.remove(asked)


async def measure(bench: Bench) -> Results:
    bench.progress.begin(bench.sizes.workload)
    async with _server(bench) as subject:
        is_ours, scope = subject.traits.is_anaphora, new_scope()
        before = await _counters(subject) if is_ours else {}
        workload, rows = Workload(bench), []
        for _ in range(bench.sizes.workload):
            asked = workload.draw()
            kind, fields = asked.kind, {"anaphora": {"explain": True}} if is_ours else {}
            sample = await subject.ask(asked.messages, REPLY_TOKENS, scope, **fields)
            workload.heard(asked, sample.text)
            rows.append(_row(kind, sample))
            bench.progress.tick()
        after = await _counters(subject) if is_ours else {}
    return {
        "own_server": bench.own is not None,
        "pool_tokens": bench.sizes.workload_pool if bench.own else None,
        "says_cached": subject.traits.says_cached,
        "requests": rows,
        "counters": {name: after[name] - before[name] for name in after},
        "ttft_ms": {
            outcome: spread_of(of)
            for outcome, wanted in (("half or more was found", True), ("less", False))
            if (of := [row["ttft_ms"] for row in rows if _is_hit(row) is wanted])
        },
    }


@asynccontextmanager
async def _server(bench: Bench) -> AsyncIterator[Subject]:
    """One of our own with a pool that is too small, and a disk; or the one that was given, as it is."""
    if bench.own is None:
        yield bench.subject
        return
    async with bench.own(("--pool-size", f"{bench.sizes.workload_pool} tokens", "--disk-size", "1GiB")) as subject:
        yield subject


async def _counters(subject: Subject) -> dict[str, float]:
    text = await subject.client.get_text("/metrics")
    values = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    return {name: values.get(f"{PREFIX}{name}_total", 0.0) for name in COUNTERS}


def _row(kind: str, sample: Sample) -> dict[str, Any]:
    """Tokens by source. What the disk has and was not worth loading counts as computed."""
    tiers = (sample.anaphora.get("cache") or {}).get("tiers") or {"pool": sample.cached_tokens}
    pool = min(sample.cached_tokens, tiers.get("pool", 0))
    return {
        "kind": kind,
        "prompt": sample.num_prompt_tokens,
        "cached": sample.cached_tokens,
        "pool": pool,
        "disk": sample.cached_tokens - pool,
        "class": (sample.anaphora.get("cache") or {}).get("class"),
        "ttft_ms": sample.ttft_ms,
    }


def _is_hit(row: dict[str, Any]) -> bool:
    return bool(row["cached"] >= HIT * row["prompt"])


def present(results: Results) -> Sequence[Part]:
    rows = results["requests"]
    pool = results["pool_tokens"]
    where = f"a server of its own, with a pool of {pool:,} tokens and a disk" if pool else "the given server, as it is"
    kinds = sorted({row["kind"] for row in rows})
    table = [_kind(kind, [row for row in rows if row["kind"] == kind]) for kind in kinds]
    parts: list[Part] = [
        f"{len(rows)} requests on {where}.",
        Table(
            ["requests", "number", "half or more found", "prompt tokens", "from the pool", "from disk", "saved"],
            [*table, _kind("all", rows)],
        ),
    ]
    times = results["ttft_ms"]
    parts.append(Table(["", "TTFT, ms"], [[outcome, shown(of)] for outcome, of in times.items()]))
    if results["counters"]:
        counted = [[label, f"{results['counters'][name]:,.0f}"] for name, label in COUNTERS.items()]
        parts.append(Table(["the server's own counters", ""], counted))
    caption = "Where the prompt tokens of each request came from, and tokens saved so far."
    return [*parts, Picture("manager", caption, lambda figure: draw(figure, results))]


def _kind(name: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    prompt = sum(row["prompt"] for row in rows)
    pool, disk = (sum(row[tier] for row in rows) for tier in ("pool", "disk"))
    hits = sum(map(_is_hit, rows))
    saved = share_shown((pool + disk) / prompt)
    return [name, f"{len(rows)}", f"{hits} of {len(rows)}", f"{prompt:,}", f"{pool:,}", f"{disk:,}", saved]


def draw(figure: "Figure", results: Results) -> None:
    from benchmarks.plots import BLUE, CACHED, COMPUTED, HATCH, THOUSANDS, legend, tidy

    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = results["requests"]
    places = range(1, len(rows) + 1)
    pool, disk = [row["pool"] for row in rows], [row["disk"] for row in rows]
    found = [a + b for a, b in zip(pool, disk, strict=True)]
    new = [row["prompt"] - have for row, have in zip(rows, found, strict=True)]
    tidy(left, "Each request", "request", "prompt tokens")
    left.bar(places, pool, 0.9, color=CACHED, label="pool")
    left.bar(places, disk, 0.9, bottom=pool, color=BLUE, label="disk")
    left.bar(
        places, new, 0.9, bottom=found, color=COMPUTED, hatch=HATCH, edgecolor="white", linewidth=0, label="computed"
    )
    legend(left)
    tidy(right, "Tokens saved so far", "request", "tokens")
    right.stackplot(
        [0, *places], [0, *accumulate(pool)], [0, *accumulate(disk)], colors=[CACHED, BLUE], labels=["pool", "disk"]
    )
    right.plot(
        [0, *places], [0, *accumulate(row["prompt"] for row in rows)], color=COMPUTED, linestyle="--", label="asked for"
    )
    right.set_xlim(left=0)
    right.yaxis.set_major_formatter(THOUSANDS)
    legend(right)


STUDY: Final = Study(
    "manager",
    "Hits, misses and tiers",
    "What does the cache keep of a mixed workload that does not fit it, and which tier has what?",
    "Green came from the pool, blue from the disk, red was computed. One-shots and first turns have nothing to find "
    "but their app's system prompt. A session that comes back after others have taken its room is found on the disk, "
    "where loading is sooner than computing. The dashed line is what would have been computed without any cache.",
    measure,
    present,
)
