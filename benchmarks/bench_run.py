"""One run of `anaphora bench`: servers up, studies one after another, servers down. Returns plain values."""

import asyncio
import gc
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from openai import OpenAIError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from benchmarks import machine
from benchmarks.client import BenchmarkFailed
from benchmarks.own_server import arguments, own_server, variables
from benchmarks.scenarios import Prompts
from benchmarks.servers import Server, running
from benchmarks.sizes import Sizes
from benchmarks.studies import STUDIES
from benchmarks.study import Bench, LoadOptions, NotMeasured, Study
from benchmarks.subject import Subject

FORMAT: Final = "anaphora-bench/1"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """base_url: of the server that is measured; empty starts one of our own, with `model`. peers: beside it, by URL."""

    names: Sequence[str]
    sizes: Sizes
    seed: int
    base_url: str = ""
    model: str = ""
    api_key: str = "none"
    peers: Sequence[Server] = ()
    load: LoadOptions = field(default_factory=LoadOptions)
    kind: str = "full"


class StudyProgress:
    """A study's bar among all."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def begin(self, total: int) -> None:
        self._progress.start_task(self._task)
        self._progress.update(self._task, total=total)

    def tick(self) -> None:
        self._progress.advance(self._task)

    def end(self, note: str) -> None:
        task = self._progress.tasks[self._task]
        total = task.total or 1
        self._progress.update(self._task, total=total, completed=total, note=note)
        self._progress.stop_task(self._task)


async def run(options: RunOptions, console: Console) -> dict[str, Any]:
    """Everything of a report, as plain values. Raises BenchmarkFailed and OpenAIError if no server can be measured."""
    gc.collect()
    gc.freeze()  # a full collection in this process would look like a slow server
    before, started_at = machine.load(), time.monotonic()
    task = asyncio.current_task()
    assert task is not None
    # A terminated run must not leave the server it started behind.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with AsyncExitStack() as stack:
        with console.status("starting …" if not options.base_url else f"looking at {options.base_url} …"):
            subject = await stack.enter_async_context(_subject(options))
            peers = [await stack.enter_async_context(_given(peer, options.api_key)) for peer in options.peers]
            prompts = await Prompts.calibrated(subject.client, options.seed)
        servers = [_facts(one) for one in (subject, *peers)]
        studies = await _run_all(options, subject, tuple(peers), prompts, console)
    return {
        "format": FORMAT,
        "when": machine.today(),
        "seconds": round(time.monotonic() - started_at, 1),
        "run": {
            "kind": options.kind,
            "seed": options.seed,
            "rounds": options.sizes.rounds,
            "server": options.base_url or "own child: anaphora serve " + " ".join(arguments(options.model, ())),
            "variables": variables() if not options.base_url else {},
        },
        "machine": machine.machine(),
        "load": {"before": before, "after": machine.load()},
        "servers": servers,
        "studies": studies,
    }


def _subject(options: RunOptions) -> AbstractAsyncContextManager[Subject]:
    if options.base_url:
        return _given(Server("server", base_url=options.base_url), options.api_key)
    return own_server(options.model, options.api_key)


@asynccontextmanager
async def _given(server: Server, api_key: str) -> AsyncIterator[Subject]:
    """A server that runs already."""
    async with running(server, api_key, {}) as client:
        yield await Subject.look(server.name, client)


def _facts(subject: Subject) -> dict[str, Any]:
    return {"name": subject.name, "model": subject.model, "traits": subject.traits.as_json()}


async def _run_all(
    options: RunOptions, subject: Subject, peers: tuple[Subject, ...], prompts: Prompts, console: Console
) -> dict[str, Any]:
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    own = partial(own_server, options.model, options.api_key) if not options.base_url else None
    done: dict[str, Any] = {}
    with Progress(*columns, console=console) as progress:
        bars = {
            name: StudyProgress(progress, progress.add_task(name, total=None, start=False, note=""))
            for name in options.names
        }
        for name, bar in bars.items():
            bench = Bench(
                subject, peers, prompts.again(options.seed), options.sizes, options.seed, bar, own, options.load
            )
            done[name] = await _run_one(STUDIES[name], bench)
            bar.end(done[name].get("not_measured") or done[name].get("failed") or "")
    return done


async def _run_one(study: Study, bench: Bench) -> dict[str, Any]:
    """A study that fails does not take the others with it."""
    started_at = time.monotonic()
    try:
        outcome: dict[str, Any] = {"results": await study.measure(bench)}
    except NotMeasured as reason:
        outcome = {"not_measured": str(reason)}
    except (BenchmarkFailed, OpenAIError, OSError, ExceptionGroup) as failure:
        outcome = {"failed": f"{type(failure).__name__}: {failure}"}
    return outcome | {"seconds": round(time.monotonic() - started_at, 1)}


def write_pictures(report: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Each study's pictures as PNG files, by name."""
    from benchmarks.plots import save
    from benchmarks.study import Picture

    written: dict[str, Path] = {}
    for name, outcome in report["studies"].items():
        if "results" not in outcome:
            continue
        for part in STUDIES[name].present(outcome["results"]):
            if isinstance(part, Picture):
                written[part.name] = folder / f"{part.name}.png"
                save(part.draw, written[part.name], part.height)
    return written
