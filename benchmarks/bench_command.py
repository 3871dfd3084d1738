"""`anaphora bench`: every study on this machine, as numbers and pictures. See docs/bench.md.

Imported only when the command is: nothing heavy is imported until it runs.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from benchmarks.bench_run import RunOptions
    from benchmarks.servers import Server

STUDY_NAMES: Final = (
    "inspect",
    "weather",
    "ordering",
    "scaling",
    "use_cases",
    "memory",
    "manager",
    "sensitivity",
    "comprehensive",
    "load",
    "peers",
)
"""Written out, so that `--help` need not import them."""


@click.command(
    "bench",
    short_help="What the cache does here, as numbers and pictures.",
    context_settings={"max_content_width": 120},
)
@click.option("--quick", is_flag=True, help="Small sizes, three rounds: minutes instead of an hour.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("bench-report"),
    show_default=True,
    help="Folder for report.html, results.json and the pictures.",
)
@click.option(
    "--study",
    "names",
    multiple=True,
    type=click.Choice(STUDY_NAMES),
    help="Which; repeatable.  [default: all]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all texts and arrivals.")
@click.option("--base-url", default="", help="Measure this server instead of one started here, e.g. http://host/v1.")
@click.option("--model", default="", help="Model of the server started here.  [default: the installed one]")
@click.option("--api-key", default="none", envvar="OPENAI_API_KEY", help="Sent to all servers.  [OPENAI_API_KEY]")
@click.option("--peer", "peers", multiple=True, metavar="NAME=BASE_URL", help="A server beside it; repeatable.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Requests per second of `load` in open loop (Poisson).",
)
@click.option(
    "--think-time",
    "think_time_s",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds between a reply and the next turn in `load`.",
)
@click.option(
    "--trace",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A trace that `load` replays: JSON lines as Mooncake has them, or as guidellm does.",
)
@click.option(
    "--time-scale",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Stretches (or, below 1, presses) the times of the trace.",
)
def bench(**given: Any) -> None:
    """Measure what the prefix cache does here, study by study, and write a report with pictures.

    Starts a server of its own with the default model; ANAPHORA_* variables reach it. Ctrl-C ends both.
    """
    if find_spec("matplotlib") is None:
        raise click.ClickException("The pictures need matplotlib: pip install 'anaphora[bench]'.")
    if given["base_url"] and given["model"]:
        raise click.UsageError("--model is of the server started here; with --base-url there is none.")
    out: Path = given["out"]
    out.mkdir(parents=True, exist_ok=True)
    report = _measured(_options(**given))
    from benchmarks.bench_report import html_report
    from benchmarks.bench_run import write_pictures
    from benchmarks.report import write_json

    write_json(out / "results.json", report)
    page = out / "report.html"
    page.write_text(html_report(report, write_pictures(report, out)), encoding="utf-8")
    click.echo(f"{page} ({report['seconds']:.0f} s)")
    if failed := [name for name, outcome in report["studies"].items() if "failed" in outcome]:
        raise click.ClickException(f"Failed: {', '.join(failed)}; the report says why.")


def _options(*, quick: bool, names: tuple[str, ...], peers: tuple[str, ...], **given: Any) -> "RunOptions":
    """Raises click.UsageError."""
    from benchmarks.bench_run import RunOptions
    from benchmarks.sizes import FULL, QUICK
    from benchmarks.study import LoadOptions

    _check_trace(given["trace"])
    load = {name: given[name] for name in ("rate", "think_time_s", "trace", "time_scale")}
    return RunOptions(
        names=[name for name in STUDY_NAMES if name in (names or STUDY_NAMES)],
        sizes=QUICK if quick else FULL,
        kind="quick" if quick else "full",
        peers=_peers(peers),
        load=LoadOptions(**load),
        **{name: given[name] for name in ("seed", "base_url", "model", "api_key")},
    )


def _measured(options: "RunOptions") -> dict[str, Any]:
    """Raises click.ClickException where no server can be measured, click.Abort for a run that was ended."""
    import asyncio

    from openai import OpenAIError
    from rich.console import Console

    from benchmarks.bench_run import run
    from benchmarks.client import BenchmarkFailed

    try:
        return asyncio.run(run(options, Console(stderr=True)))
    except asyncio.CancelledError:
        raise click.Abort from None
    except (BenchmarkFailed, OpenAIError, OSError) as failure:
        raise click.ClickException(str(failure)) from failure


def _check_trace(trace: Path | None) -> None:
    """Before anything is started. Raises click.UsageError."""
    from benchmarks.traces import TraceError, read_trace

    if trace is None:
        return
    try:
        read_trace(trace)
    except TraceError as error:
        raise click.UsageError(f"--trace: {trace.name}: {error}.") from None


def _peers(texts: tuple[str, ...]) -> "list[Server]":
    """Raises click.UsageError: for a bad form, for a name given twice."""
    from benchmarks.servers import Server

    try:
        peers = [Server.parse(text, is_command=False) for text in texts]
    except ValueError as error:
        raise click.UsageError(f"--peer: {error}.") from None
    if len({peer.name for peer in peers} | {"anaphora", "server"}) < len(peers) + 2:
        raise click.UsageError("--peer: each needs a name of its own.")
    return peers
