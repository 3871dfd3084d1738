"""End to end over HTTP, against any OpenAI-compatible server: `python -m benchmarks.serve --help`; see README.md."""

import asyncio
import gc
import json
import secrets
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from openai import OpenAIError

from benchmarks.client import BenchmarkFailed
from benchmarks.report import Comparison, cpu_name, measuring, write_json
from benchmarks.scenarios import QUICK, SCENARIOS, Prompts, Sizes
from benchmarks.servers import Server, running


@click.command(context_settings={"max_content_width": 120})
@click.option("--server", "given", multiple=True, metavar="NAME=BASE_URL", help="A running server; repeatable.")
@click.option(
    "--start",
    "started",
    multiple=True,
    metavar="NAME=COMMAND",
    help="A server to start for its turn and end after it; {port} in the command is where it must listen. Repeatable.",
)
@click.option(
    "--scenario", "names", multiple=True, type=click.Choice(list(SCENARIOS)), help="Which; repeatable.  [default: all]"
)
@click.option("--repeats", default=5, show_default=True, help="Samples of each figure; the median is shown.")
@click.option("--quick", is_flag=True, help="Tiny sizes, one repeat: does it work, not how fast is it.")
@click.option(
    "--seed",
    "prompt_seed",
    type=click.IntRange(min=0),
    default=lambda: secrets.randbits(32),
    help="Of the prompts.  [default: another one each time, so that no cache knows them]",
)
@click.option("--api-key", default="none", help="Sent to all servers.")
@click.option("--extra-body", default='{"ignore_eos": true}', show_default=True, help="JSON merged into each request.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all samples there.")
def main(**given: Any) -> None:
    """Measure servers one after another, with the same prompts. Those given go first; the first is the reference."""
    options = Options(**given)
    servers = options.servers()
    extra_body = options.extra_fields()
    comparison = Comparison([server.name for server in servers])
    gc.collect()
    gc.freeze()  # a full collection in this process would look like a slow server
    for server in servers:
        with measuring(f"{server.name}: {server.base_url or server.command}"):
            try:
                asyncio.run(measure(server, extra_body, options, comparison))
            except asyncio.CancelledError:
                raise click.Abort from None
            except (BenchmarkFailed, OpenAIError, OSError, ExceptionGroup) as failure:
                raise click.ClickException(f"{server.name}: {failure}") from failure
    print(f"== medians of {options.num_samples}, seed {options.prompt_seed}")
    comparison.print()
    if options.json_file:
        facts = {
            "seed": options.prompt_seed,
            "processor": cpu_name(),
            "servers": [asdict(server) for server in servers],
        }
        write_json(options.json_file, {**facts, "samples": comparison.as_json()})


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    given: Sequence[str]
    started: Sequence[str]
    names: Sequence[str]
    repeats: int
    quick: bool
    prompt_seed: int
    api_key: str
    extra_body: str
    json_file: Path | None

    @property
    def num_samples(self) -> int:
        return 1 if self.quick else self.repeats

    def servers(self) -> list[Server]:
        """Raises click.UsageError: for none at all, for a bad form, for a name given twice."""
        try:
            servers = [Server.parse(text, is_command=False) for text in self.given]
            servers += [Server.parse(text, is_command=True) for text in self.started]
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        if not servers:
            raise click.UsageError("Name at least one server, with --server or --start.")
        if len({server.name for server in servers}) < len(servers):
            raise click.UsageError("Two servers have the same name.")
        return servers

    def extra_fields(self) -> dict[str, Any]:
        """Raises click.UsageError."""
        try:
            fields = json.loads(self.extra_body)
        except ValueError as error:
            raise click.UsageError(f"--extra-body is not JSON: {error}.") from None
        if not isinstance(fields, dict):
            raise click.UsageError("--extra-body is not a JSON object.")
        return fields


async def measure(server: Server, extra_body: dict[str, Any], options: Options, comparison: Comparison) -> None:
    """All chosen scenarios on one server. The prompts depend on the seed and on its tokenizer only."""
    sizes = QUICK if options.quick else Sizes()
    task = asyncio.current_task()
    assert task is not None
    # A terminated run must not leave the server it started behind.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with running(server, options.api_key, extra_body) as client:
        prompts = await Prompts.calibrated(client, options.prompt_seed)
        for name in options.names or SCENARIOS:
            print(f"   {name}", flush=True)
            for _ in range(options.num_samples):
                for figure, value in await SCENARIOS[name](client, prompts, sizes):
                    comparison.add(figure, server.name, [value])


if __name__ == "__main__":
    main()
