"""The disk tier: what it saves, where loading begins to pay, and what writing costs a running stream.

python -m benchmarks.disk
"""

import asyncio
import itertools
import logging
import statistics
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, TypeVar

import click
import structlog

from benchmarks.words import WordSource
from proxy.settings import default_cache_dir
from sessions.reports import Usage
from sessions.service import ChatService
from sessions.startup import ServiceOptions, open_service
from sessions.types import ChatRequest, Message, SamplingParams

T = TypeVar("T")
LENGTHS = (100, 250, 500, 1000, 2000)
"""Words of a prompt, which are about as many tokens."""
NUM_STREAM_TOKENS = 40
NUM_ROUNDS = 3


def prompt(name: str, num_words: int) -> ChatRequest:
    """The same for the same name; no other begins like it."""
    text = WordSource(zlib.crc32(name.encode())).take(num_words)
    return ChatRequest((Message("user", text),), SamplingParams(temperature=0, max_tokens=1))


async def time_to_first_token(service: ChatService, request: ChatRequest) -> tuple[float, Usage]:
    """Seconds; the whole reply is one token."""
    started_at = time.perf_counter()
    generation = await service.start(request)
    async for _ in generation:
        pass
    return time.perf_counter() - started_at, generation.usage()


async def inter_token_latencies(service: ChatService, round_name: str) -> list[float]:
    """Seconds between the pieces of one stream, beside unique prompts of 500 words that come one after the other."""
    request = ChatRequest(
        prompt(f"stream {round_name}", 300).messages,
        SamplingParams(temperature=0, max_tokens=NUM_STREAM_TOKENS, ignore_eos=True),
    )
    generation = await service.start(request)

    async def others() -> None:
        for number in itertools.count():
            await time_to_first_token(service, prompt(f"beside {round_name} {number}", 500))

    beside = asyncio.create_task(others())
    arrivals = [time.perf_counter() async for delta in generation if delta.text]
    beside.cancel()
    await asyncio.gather(beside, return_exceptions=True)
    return [later - earlier for earlier, later in itertools.pairwise(arrivals)]


@asynccontextmanager
async def opened(cache_dir: Path, disk_size: str) -> AsyncIterator[ChatService]:
    service = await open_service(ServiceOptions(cache_dir, pool_size="40000 tokens", index="off", disk_size=disk_size))
    try:
        yield service
    finally:
        await service.close()


def own_cache_dir(folder: Path) -> Path:
    """The user's converted models and kernels, but not the user's KV."""
    for item in default_cache_dir().iterdir():
        if item.name != "kv":
            (folder / item.name).symlink_to(item)
    return folder


class Measured(NamedTuple):
    """Of one process. seconds, usage: per length, of the first time a prompt came; again: of the second."""

    seconds: dict[int, float]
    usage: dict[int, Usage]
    again: dict[int, float]
    prefill_tokens_per_s: float
    bytes_per_token: float


async def first_tokens(cache_dir: Path) -> Measured:
    seconds: dict[int, float] = {}
    usage: dict[int, Usage] = {}
    again: dict[int, float] = {}
    async with opened(cache_dir, "8GiB") as service:
        await time_to_first_token(service, prompt("warm-up", 300))
        await time_to_first_token(service, prompt("warm-up", 300))
        for length in LENGTHS:
            request = prompt(f"measured {length}", length)
            seconds[length], usage[length] = await time_to_first_token(service, request)
            again[length], _ = await time_to_first_token(service, request)
        prefill_rate = service.engine.scheduler.prefill_rate.value or 0.0
    stats = service.stats()
    return Measured(seconds, usage, again, prefill_rate, stats.disk_bytes / (stats.disk_blocks * 16))


async def stream_beside(cache_dir: Path, disk_size: str, name: str) -> tuple[list[float], int]:
    """(inter-token latencies, blocks written meanwhile)."""
    async with opened(cache_dir, disk_size) as service:
        await time_to_first_token(service, prompt("warm-up", 300))
        latencies = await inter_token_latencies(service, name)
        return latencies, service.stats().disk_written_blocks


def run(function: Callable[..., Coroutine[None, None, T]], *arguments: object) -> T:
    return asyncio.run(function(*arguments))


def in_a_process(function: Callable[..., Coroutine[None, None, T]], *arguments: object) -> T:
    """Each service in its own: torch's threads of one that has ended would slow the next."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=be_quiet) as process:
        return process.submit(run, function, *arguments).result()


def be_quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


def compare_first_tokens(cache_dir: Path) -> None:
    cold = in_a_process(first_tokens, cache_dir)
    restarted = in_a_process(first_tokens, cache_dir)
    print(f"{'prompt':>8} {'cold':>9} {'from disk':>10} {'in pool':>9} {'cold/disk':>10}   restored")
    for length in LENGTHS:
        usage, disk = restarted.usage[length], restarted.seconds[length]
        print(
            f"{usage.prompt_tokens:>8} {cold.seconds[length] * 1e3:>6.0f} ms {disk * 1e3:>7.0f} ms "
            f"{cold.again[length] * 1e3:>6.0f} ms {cold.seconds[length] / disk:>9.1f}x   {usage.restored_tokens}"
        )
    load_s = sum(restarted.seconds[length] - cold.again[length] for length in LENGTHS)
    num_bytes = sum(usage.restored_tokens for usage in restarted.usage.values()) * cold.bytes_per_token
    prefill, kib = cold.prefill_tokens_per_s, cold.bytes_per_token / 1024
    print(
        f"loads {num_bytes / load_s / 1e6:,.0f} MB/s, all that a prompt costs more from disk than in the pool counted"
    )
    print(
        f"crossover: at {prefill:,.0f} prefilled tokens/s and {kib:.1f} KiB a token, loading pays from "
        f"{prefill * kib * 1024 / 1e6:,.0f} MB/s on"
    )


def compare_streams(cache_dir: Path) -> None:
    latencies: dict[str, list[float]] = {"0": [], "8GiB": []}
    num_written = 0
    for number in range(NUM_ROUNDS):
        for disk_size in latencies:
            found, written = in_a_process(stream_beside, cache_dir, disk_size, f"{disk_size} {number}")
            latencies[disk_size] += found
            num_written += written
    print(f"\n{'disk':>8} {'ITL p50':>9} {'p90':>9} {'mean':>9}      {num_written} blocks written meanwhile")
    for name, values in latencies.items():
        p90 = statistics.quantiles(values, n=10)[-1]
        figures = (statistics.median(values), p90, statistics.fmean(values))
        print(f"{name:>8} " + " ".join(f"{value * 1e3:>6.1f} ms" for value in figures))


@click.command()
def main() -> None:
    """The default model over a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        cache_dir = own_cache_dir(Path(folder))
        compare_first_tokens(cache_dir)
        compare_streams(cache_dir)


if __name__ == "__main__":
    main()
