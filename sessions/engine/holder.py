"""What a request holds of the pool: attached when it is admitted, registered as its KV is written, let go at its end.

Changes a request's block table and counts, and the pool; knows nothing of who runs when. Pure; engine thread only.
"""

from bisect import bisect_left
from collections.abc import Callable

from sessions.engine.block_pool import BlockPool
from sessions.engine.block_table import BlockTable
from sessions.engine.block_tree import Match
from sessions.engine.drops import tails_after
from sessions.engine.request import Request, Stored
from sessions.engine.schedule import Load, Schedule
from sessions.types import BlockHash


class Holder:
    """clock: time.monotonic, for the pool's retention. Raises what the pool does: its callers have seen to room."""

    def __init__(self, pool: BlockPool, clock: Callable[[], float]) -> None:
        self._pool = pool
        self._clock = clock

    # -- attach --

    def readable(self, request: Request) -> Match:
        """What the pool has of the prompt, up to where the request may read.

        stored       [ full block ][ full block ][ E F G H ]
        read point                       ^                      1 block and 2 tokens of the next
        """
        match = self._pool.match_prompt(request.chain, request.token_ids)
        found = len(match.blocks) * self._pool.block_size + match.num_tail_tokens
        readable = request.readable(found)
        if readable == found:
            return match
        num_blocks, num_tail_tokens = divmod(readable, self._pool.block_size)
        tail = (*match.blocks, match.tail)[num_blocks] if num_tail_tokens else None
        return Match(match.blocks[:num_blocks], tail, num_tail_tokens)

    def attach(self, request: Request, match: Match, schedule: Schedule) -> tuple[int, int]:
        """Hold what the pool has and what was restored. Returns tokens not to be computed, and those of them restored.

        prompt     [ full block ][ full block ][ E F X Y ..
        stored     [ full block ][ full block ][ E F G H ]     tail: 2 tokens shared
        attached   touched        touched       copy of E F    copied, or taken over if all of it is ours and idle

        Where a lower tier has restored whole blocks after the full ones, these are attached in place of the tail.
        """
        self._pool.touch(match.blocks)
        request.block_table = BlockTable(match.blocks)
        num_restored = self._attach_restored(request, schedule)
        num_cached = len(request.block_table) * self._pool.block_size
        tail = match.tail
        if tail is not None and not num_restored:
            num_cached += match.num_tail_tokens
            if tail.ref_count == 0 and not tail.is_full and match.num_tail_tokens == len(tail.token_ids):
                self._pool.touch([tail])
                request.block_table.append(tail)
            else:
                (copy,) = self._pool.allocate(1, self._clock())
                schedule.copies.append((tail, copy))
                request.block_table.append(copy)
        request.num_computed_tokens = num_cached
        request.num_registered_blocks = len(match.blocks)
        return num_cached, num_restored

    def _attach_restored(self, request: Request, schedule: Schedule) -> int:
        """Blocks for what was restored after the end of the block table; their KV is written before the step's own,
        and they count as computed: `commit` registers them. Returns tokens.
        """
        num_matched = len(request.block_table)
        for restored in request.restored:
            skipped = len(request.block_table) - restored.first
            if 0 <= skipped < len(restored.payload):
                blocks = self._pool.allocate(len(restored.payload) - skipped, self._clock())
                request.block_table.extend(blocks)
                schedule.loads.append(Load(blocks, restored.payload[skipped:]))
        request.restored = ()
        return (len(request.block_table) - num_matched) * self._pool.block_size

    def extend(self, request: Request, num_blocks: int) -> None:
        """Blocks for tokens to come."""
        request.block_table.extend(self._pool.allocate(num_blocks, self._clock()))

    # -- register --

    def register_full_blocks(self, request: Request) -> None:
        """Hash blocks that just became full, after their KV exists; swap in the stored twin where there is one."""
        size = self._pool.block_size
        for index in range(request.num_registered_blocks, request.num_shown_tokens // size):
            block_hash = request.chain.hashes[index]
            if self._is_dropped(request, index, block_hash):
                return
            parent = request.block_table[index - 1] if index else None
            held = request.block_table[index]
            root, owner = request.chain.root_of(index), request.owner_of(index)
            block = self._pool.register_full(held, root, parent, block_hash, request.chain.runs[index], owner)
            if not block.is_full:
                return
            request.block_table[index] = block
            request.num_registered_blocks = index + 1

    def register_tail(self, request: Request, *, is_final: bool = False) -> None:
        """Make the last, partial block findable by its tokens. is_final: the request appends nothing more."""
        start = request.num_registered_blocks * self._pool.block_size
        tail = tuple(request.token_ids[start : request.num_shown_tokens])
        is_dropped = self._is_dropped(request, request.num_registered_blocks)
        if tail and len(tail) < self._pool.block_size and not is_dropped:
            parent = request.block_table[request.num_registered_blocks - 1] if request.num_registered_blocks else None
            block = request.block_table[request.num_registered_blocks]
            root = request.chain.branch_at(request.num_registered_blocks)
            request.block_table[request.num_registered_blocks] = self._pool.register_partial(
                block, root, parent, tail, request.owner, is_final=is_final
            )

    def _is_dropped(self, request: Request, index: int, block_hash: BlockHash | None = None) -> bool:
        """Was the block at `index`, or the tail there, dropped since the request arrived? A declared block never is."""
        drops, settled = self._pool.drops, request.num_settled_drops
        if drops.is_newest(settled) or (block_hash is not None and index < request.chain.num_shared_blocks):
            return False
        root = request.chain.branch_at(index)
        parent = request.chain.hashes[index - 1] if index else root
        return drops.bars(settled, request.owner, root, block_hash, tails_after(parent))

    def stored(self, request: Request) -> tuple[Stored, ...]:
        """The chains of what is registered, and was not dropped since: a drop takes a path's end."""
        table, chain = request.block_table, request.chain
        num_blocks = bisect_left(
            range(request.num_registered_blocks), True, key=lambda index: not table[index].is_registered
        )
        return tuple(
            Stored(root, tuple(chain.hashes[start:end]), request.owner_of(start))
            for root, start, end in chain.stretches(num_blocks)
        )

    # -- let go --

    def let_go(self, request: Request) -> None:
        """Free its blocks; what is registered stays, for as long as the request asked."""
        for num_tokens, level in request.levels():
            self._pool.retain(request.block_table, num_tokens, level)
        self._pool.free(request.block_table, self._clock())
        request.block_table = BlockTable()
        request.num_computed_tokens = request.num_registered_blocks = 0
