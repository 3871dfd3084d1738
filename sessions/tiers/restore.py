"""Restorer: what a tier holds of a prompt, read and verified before the engine sees the request. Event loop only.

    start() ─▶ pieces ─▶ load or recompute? ─▶ one read per piece on the loader thread ─▶ RestoredBlocks on the Request

Meanwhile the engine runs other requests' steps. A read that fails, is late or finds something else is a miss.
"""

import asyncio
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog

from sessions.engine.request import RestoredBlocks
from sessions.hashing import HashChain, token_bytes
from sessions.rate import Rate
from sessions.tiers.cost import Size, num_worth_loading
from sessions.tiers.segment import Entry, Payload, reason_of
from sessions.tiers.segment_index import Piece
from sessions.tiers.segment_store import SegmentStore

log = structlog.get_logger(__name__)

MAX_BYTES_IN_FLIGHT = 512 * 2**20
"""Memory for what was read of one tier and is not in the pool yet, over all requests."""
LONGEST_WAIT_S = 5.0
"""A disk that has not answered by then (a network folder that hangs) is not waited for."""


class Restorer:
    """prefill_rate: tokens per second that the engine computes of prompts; None while nobody knows."""

    def __init__(self, store: SegmentStore, prefill_rate: Callable[[], float | None]) -> None:
        self.read_rate = Rate()
        self.num_errors = 0
        self.num_tokens_loaded = 0
        self._store = store
        self._prefill_rate = prefill_rate
        self._executor = ThreadPoolExecutor(1, f"anaphora-{store.tier}-read")
        self._loading: dict[tuple[Entry, ...], asyncio.Future[Payload | None]] = {}
        self._is_closed = False
        self._num_bytes_queued = 0
        self._num_bytes_in_flight = 0
        self._let_go: deque[int] = deque()

    def pieces(self, chain: HashChain, start: int, end: int) -> list[Piece]:
        """Where blocks [start, end) of a prompt are, as far as they are stored without a gap. No I/O."""
        pieces: list[Piece] = []
        for root, _, stretch_end in chain.stretches(end):
            if start < stretch_end:
                pieces += self._store.pieces(root, chain.hashes[:stretch_end], start)
                start = pieces[-1].position + pieces[-1].num_blocks if pieces else start
        return pieces

    async def restore(self, chain: HashChain, token_ids: Sequence[int], num_local: int) -> tuple[RestoredBlocks, ...]:
        """Whole blocks of the prompt after its first `num_local`, without gaps, the last token's never. Raises nothing.

        chain: of `token_ids`.
        """
        if self._is_closed:
            return ()
        size = self._store.form.block_size
        pieces = self.pieces(chain, num_local, (len(token_ids) - 1) // size)
        pieces = pieces[: self._num_to_load(pieces)]
        if not pieces:
            return ()
        loads = [self._load(piece, chain, token_ids) for piece in pieces]
        await asyncio.wait(loads, timeout=LONGEST_WAIT_S)
        restored = []
        for piece, load in zip(pieces, loads, strict=True):
            payload = load.result() if load.done() and not load.cancelled() else None
            if payload is None:
                break
            restored.append(RestoredBlocks(piece.position, payload))
            self.num_tokens_loaded += len(payload) * size
        return tuple(restored)

    def close(self) -> None:
        """What waits is not read any more, and nothing new is. Any thread."""
        self._is_closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _num_to_load(self, pieces: Sequence[Piece]) -> int:
        """As many as are worth it, and as fit the memory that may be in flight."""
        form = self._store.form
        sizes = [Size(piece.num_blocks * form.block_size, piece.num_blocks * form.stride) for piece in pieces]
        count = num_worth_loading(sizes, self._num_bytes_queued, self.read_rate.value, self._prefill_rate())
        while self._let_go:
            self._num_bytes_in_flight -= self._let_go.popleft()
        while count and self._num_bytes_in_flight + sum(size.num_bytes for size in sizes[:count]) > MAX_BYTES_IN_FLIGHT:
            count -= 1
        return count

    def _load(self, piece: Piece, chain: HashChain, token_ids: Sequence[int]) -> "asyncio.Future[Payload | None]":
        """One read, shared by all who want the same blocks while it goes on."""
        form = self._store.form
        hashes = chain.hashes[piece.position : piece.position + piece.num_blocks]
        size = form.block_size
        expected = tuple(
            Entry(block_hash, token_bytes(token_ids[position * size : (position + 1) * size]))
            for position, block_hash in enumerate(hashes, piece.position)
        )
        if expected in self._loading:
            return self._loading[expected]
        num_bytes = piece.num_blocks * form.stride
        self._num_bytes_queued += num_bytes
        self._num_bytes_in_flight += num_bytes
        load = asyncio.get_running_loop().run_in_executor(self._executor, self._read, piece, expected)
        self._loading[expected] = load

        def ended(_: object) -> None:
            del self._loading[expected]
            self._num_bytes_queued -= num_bytes

        load.add_done_callback(ended)
        return load

    # -- loader thread --

    def _read(self, piece: Piece, expected: Sequence[Entry]) -> Payload | None:
        num_bytes = len(expected) * self._store.form.stride
        started_at = time.monotonic()
        payload: Payload | None = None
        try:
            payload = self._store.read(piece, expected)
        except Exception as error:  # noqa: BLE001 - no memory to read into, say: the request is computed, not failed
            self.num_errors += 1
            log.warning("tier cannot read", tier=self._store.tier, error=reason_of(error), errors=self.num_errors)
        finally:
            if payload is None:
                self._let_go.append(num_bytes)
        if payload is not None:
            self.read_rate.observe(num_bytes, time.monotonic() - started_at)
            weakref.finalize(payload.base, self._let_go.append, num_bytes).atexit = False
        return payload
