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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import click
import structlog

from benchmarks.words import WordSource
from proxy.settings import default_cache_dir
from sessions.service import ChatService
from sessions.startup import ServiceOptions, open_service
from sessions.types import ChatRequest, Message, SamplingParams, Usage

LENGTHS = (100, 250, 500, 1000, 2000)
"""Words of a prompt, which are about as many tokens."""
NUM_STREAM_TOKENS = 100
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


async def first_tokens(cache_dir: Path) -> None:
    cold: dict[int, float] = {}
    warm: dict[int, float] = {}
    async with opened(cache_dir, "8GiB") as service:
        await time_to_first_token(service, prompt("warm-up", 50))
        for length in LENGTHS:
            cold[length], _ = await time_to_first_token(service, prompt(f"measured {length}", length))
            warm[length], _ = await time_to_first_token(service, prompt(f"measured {length}", length))
        prefill_rate = service.engine.scheduler.prefill_rate.value or 0.0
    print(f"{'prompt':>8} {'cold':>9} {'from disk':>10} {'in pool':>9} {'cold/disk':>10}")
    async with opened(cache_dir, "8GiB") as service:
        await time_to_first_token(service, prompt("warm-up", 50))
        stats = service.stats()
        bytes_per_token = stats.disk_bytes / (stats.disk_blocks * 16)
        num_loaded, load_s = 0, 0.0
        for length in LENGTHS:
            disk, usage = await time_to_first_token(service, prompt(f"measured {length}", length))
            num_loaded, load_s = num_loaded + usage.restored_tokens, load_s + disk - warm[length]
            print(
                f"{usage.prompt_tokens:>8} {cold[length] * 1e3:>6.0f} ms {disk * 1e3:>7.0f} ms "
                f"{warm[length] * 1e3:>6.0f} ms {cold[length] / disk:>9.1f}x   {usage.restored_tokens} restored"
            )
    loaded_per_s = num_loaded * bytes_per_token / load_s
    break_even = prefill_rate * bytes_per_token
    print(f"prefill {prefill_rate:,.0f} tokens/s; loads {loaded_per_s / 1e6:,.0f} MB/s, all but the warm step counted")
    print(
        f"loading pays from {break_even / 1e6:,.0f} MB/s on: {bytes_per_token / 1024:.1f} KiB a token at that prefill"
    )


async def stream_beside_writes(cache_dir: Path) -> None:
    latencies: dict[str, list[float]] = {"off": [], "on": []}
    written = 0
    async with opened(cache_dir, "0") as off, opened(cache_dir, "8GiB") as on:
        for number in range(NUM_ROUNDS):
            for name, service in (("off", off), ("on", on)):
                latencies[name] += await inter_token_latencies(service, f"{name} {number}")
        written = on.stats().disk_written_blocks
    print(f"\n{'disk':>8} {'ITL p50':>9} {'p90':>9} {'mean':>9}      {written} blocks written meanwhile")
    for name, values in latencies.items():
        p90 = statistics.quantiles(values, n=10)[-1]
        figures = (statistics.median(values), p90, statistics.fmean(values))
        print(f"{name:>8} " + " ".join(f"{value * 1e3:>6.1f} ms" for value in figures))


@click.command()
def main() -> None:
    """The default model over a folder of its own."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as folder:
        cache_dir = own_cache_dir(Path(folder))
        asyncio.run(first_tokens(cache_dir))
        asyncio.run(stream_beside_writes(cache_dir))


if __name__ == "__main__":
    main()
