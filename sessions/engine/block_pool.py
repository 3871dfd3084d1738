"""Who holds which block of the KV pool, which is pinned, and which one is given up next.

Owns block ids, reference counts, pins, budgets and the free queues; what blocks contain is in its `BlockTree`, of which
`census` tells. Pure Python: no tensor, no lock, no clock (callers pass `now`, time.monotonic()); used from the engine
thread only.

A block is `block_size` consecutive tokens' KV over all layers, and in one of these states:

    empty ──allocate──▶ held ──register──▶ held, registered ──free──▶ free, in the queue of its level
      ▲                  │ free                  ▲                      │      │
      └──────────────────┘                       └────────touch─────────┘      │
      └──────────────────────────── evict, drop ───────────────────────────────┘

* A block is registered *after* its KV is written, never before.
* A request holds a path from the root: a held block's parent is held. Hence what is stored is prefix-closed.
* Empty blocks are handed out first. Then free ones are evicted in the order of `retention.py`: leaves only.
* A pinned block is never evicted: while nobody holds it, it stands in no queue.
* The free blocks of an owner with a budget stand in a second set of queues, the owner's, from which the budget is kept.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from sessions.engine.block import Block, Path, num_idle
from sessions.engine.block_tree import BlockTree, Match
from sessions.engine.census import Census
from sessions.engine.drops import Drops
from sessions.engine.idle_blocks import IdleBlocks
from sessions.engine.losses import Loss, Losses, LossReason
from sessions.engine.pins import Pins
from sessions.engine.retention import CONTINUED, ONE_SHOT, raise_level, raise_reused
from sessions.hashing import HashChain, runs_of
from sessions.types import BlockHash, BlockId


class PoolExhausted(Exception):
    """`allocate` was asked for more than `num_free_blocks`; nothing was taken."""


class BlockPool:
    """Fixed set of `num_blocks` blocks of `block_size` tokens.

    Methods that mutate say so. None blocks, none logs. Only `allocate` and `pin` raise. shared_root: of what the
    operator declared shared; only blocks that belong to nobody stand under it.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        max_pinned_blocks: int | None = None,
        shared_root: BlockHash | None = None,
    ) -> None:
        self.block_size = block_size
        self.blocks = [Block(BlockId(index)) for index in range(num_blocks)]
        self.num_evicted_blocks = 0
        self.drops = Drops()
        self._tree = BlockTree(block_size, shared_root)
        self.census = Census(self._tree)
        self._idle = IdleBlocks(self.blocks)
        self._pins = Pins(num_blocks // 2 if max_pinned_blocks is None else max_pinned_blocks)
        self._losses = Losses()
        self._removed: list[BlockHash] = []

    @property
    def num_free_blocks(self) -> int:
        """Blocks that `allocate` can hand out now, cached ones included, pinned ones not."""
        return len(self._idle)

    @property
    def num_cached_blocks(self) -> int:
        """Registered full blocks, held or not."""
        return len(self._tree.by_hash)

    @property
    def num_pinned_blocks(self) -> int:
        return self._pins.num_blocks

    # -- lookup --

    def num_cached_prefix_blocks(self, hashes: Sequence[BlockHash]) -> int:
        """How many leading `hashes` are stored.

        Other threads may call it: it reads a dict, and a stale answer is only a stale hint.
        """
        return self._tree.num_prefix_blocks(hashes)

    def find(self, block_hash: BlockHash) -> Block | None:
        """The full block of this hash. Like the count above, other threads may call it: the answer may be stale."""
        return self._tree.by_hash.get(block_hash)

    def match(self, root: BlockHash, hashes: Sequence[BlockHash], token_ids: Sequence[int]) -> Match:
        """Longest stored prefix of `token_ids`, token-granular. Changes nothing.

        `hashes` are the chained hashes of `token_ids`' whole blocks (more are ignored). The caller cuts `token_ids`
        short by what it must compute itself (the last token, for its logits).
        """
        runs = runs_of(token_ids, self.block_size)
        return self._tree.match(root, hashes, runs, token_ids[len(runs) * self.block_size :])

    def match_prompt(self, chain: HashChain, token_ids: Sequence[int]) -> Match:
        """`match` for all but the last of a chain's `token_ids`; work per block, not per token.

        A tail that ends inside shared content is its tenant's own.
        """
        num_runs = (len(token_ids) - 1) // self.block_size
        runs = chain.runs if num_runs == len(chain.runs) else chain.runs[:num_runs]
        tail = token_ids[len(runs) * self.block_size : -1]
        match = self._tree.match(chain.branch, chain.hashes, runs, tail)
        if match.tail is None and len(match.blocks) < chain.num_shared_blocks:
            match = self._tree.match(chain.branch_at(len(match.blocks)), chain.hashes, runs, tail)
        return match

    def continuation(self, root: BlockHash, parent: Block | None, tail: tuple[int, ...], limit: int) -> tuple[int, ...]:
        """Up to `limit` tokens stored after `parent`'s block and `tail`; one branch of many. Changes nothing."""
        return self._tree.continuation(root, parent, tail, limit)

    def loss(self, block_hash: BlockHash) -> Loss | None:
        """How a block that is not stored was lost; None if it never was stored, or too long ago."""
        return self._losses.get(block_hash)

    def was_dropped(self, hashes: Iterable[BlockHash], now: float) -> None:
        """These went from a lower tier, and this is how `loss` shall tell of them. Mutates."""
        for block_hash in hashes:
            self._losses.record(block_hash, "dropped", now, 0.0)

    # -- holding --

    def touch(self, path: Sequence[Block]) -> None:
        """Add a reference to each block of a path, or to the next of one that is held. Mutates."""
        self._idle.remove(path[len(path) - num_idle(path) :])
        for block in path:
            block.ref_count += 1

    def allocate(self, num_blocks: int, now: float) -> list[Block]:
        """Take `num_blocks` blocks, evicting what they cached. Mutates; all or nothing: PoolExhausted."""
        if num_blocks > len(self._idle):
            raise PoolExhausted(f"{num_blocks} blocks wanted, {len(self._idle)} free")
        for block, reason in self._idle.victims(num_blocks, now):
            self._evict(block, reason, now)
        taken = self._idle.take(num_blocks)
        for block in taken:
            block.ref_count = 1
        return taken

    def free(self, path: Path, now: float) -> None:
        """Drop one reference to each block of a path, tail first. Mutates.

        A block nobody holds keeps its KV if it is registered, and is empty if it is not. An owner over its budget loses
        what is given up first of its own.

        held, pinned   [ 3 ][ 2 ][ 2 ][ 1 ][ 1 ][ 1 ]       whoever holds or pins a block does so with its parent:
                                      └─ free ─────┘        what becomes free is the end of the path
        """
        blocks = list(reversed(path))
        num_left = bisect_left(blocks, True, key=lambda block: block.ref_count > 1)
        for block in blocks[:num_left]:
            block.ref_count = 0
            block.last_used_at = now
        for block in blocks[num_left:]:
            block.ref_count -= 1
        self._idle.add(blocks[: bisect_left(blocks, True, hi=num_left, key=lambda block: block.num_pins > 0)])
        self._keep_budgets(now)

    # -- retention --

    def reuse(self, match: Match, hashes: Sequence[BlockHash]) -> int:
        """A later request, which holds `match`, goes on from it to `hashes`: what it reuses rises. Mutates.

        Returns the level of what the request adds. Where the next block was lost, a session has come back for it.
        """
        end = len(match.blocks)
        has_lost = end < len(hashes) and hashes[end] in self._losses
        level = raise_reused(match.blocks[-1]) if match.blocks else ONE_SHOT
        return max(level, CONTINUED) if has_lost else level

    def retain(self, path: Path, num_tokens: int, level: int) -> None:
        """Raise the blocks of a held path that have its first `num_tokens` tokens to at least `level`. Mutates.

        O(blocks not on that level yet), and blocks of the path that are not registered.
        """
        index = min(-(-num_tokens // self.block_size), len(path)) - 1
        while index >= 0 and not path[index].is_registered:
            index -= 1
        if index >= 0:
            raise_level(path[index], level)

    def pin(self, root: BlockHash, hashes: Sequence[BlockHash]) -> int:
        """Never evict what is stored of this path. Returns how many blocks that is. Mutates; PinLimitExceeded.

        Shared blocks are pinned together with what follows them under `root`, never alone: a pin is its owner's.
        A path pinned twice is pinned once; a path and a longer one are two pins.
        """
        path = self._tree.path(root, hashes)
        if path and not self._pins.ends_in(path[-1]):
            self._idle.remove([block for block in self._pins.add(path) if block.ref_count == 0])
        return len(path)

    def unpin(self, root: BlockHash, hashes: Sequence[BlockHash], now: float) -> int:
        """Undo the longest pin on this path. Returns how many blocks it had, 0 if there is none. Mutates.

        What nobody pins or holds any more counts as used now.
        """
        path = self._tree.path(root, hashes)
        while path and not self._pins.ends_in(path[-1]):
            path.pop()
        if path:
            self._unpin(path[-1], now)
            self._keep_budgets(now)
        return len(path)

    def _unpin(self, last: Block, now: float) -> None:
        idle = [block for block in self._pins.remove(last) if block.ref_count == 0]
        for block in idle:
            block.last_used_at = now
        self._idle.add(idle)

    # -- giving up --

    def drop(self, root: BlockHash, last_hash: BlockHash | None, now: float) -> int:
        """Forget what is stored under `root`, or from the block of `last_hash` on; pins too. Mutates. Returns tokens.

        Blocks in use are found by nobody from now on, stay their holders' own, and are empty once freed.
        """
        return self._drop(self._tree.below(self._tree.tops(root, last_hash)), now)

    def drop_tails(self, parent_hash: BlockHash, now: float) -> int:
        """Forget the partial blocks after this block. Mutates. Returns tokens."""
        return self._drop(self._tree.tails_after(parent_hash), now)

    def _drop(self, doomed: Sequence[Block], now: float) -> int:
        for block in doomed:
            if self._pins.ends_in(block):
                self._unpin(block, now)
        num_tokens = sum(len(block.token_ids) for block in doomed)
        for block in reversed(doomed):
            self._forget(block, "dropped", now)
        return num_tokens

    def set_budget(self, owner: str, num_blocks: int) -> None:
        """Bound what `owner` leaves behind, what is stored already included; 0 lifts the bound. Mutates. O(blocks).

        What is over it goes when a request ends, or when room is needed.
        """
        self._idle.set_budget(owner, num_blocks, self.blocks)

    def budget_of(self, owner: str) -> int | None:
        """Blocks; None without a bound. Any thread."""
        budget = self._idle.budgets.by_owner.get(owner)
        return None if budget is None else budget.max_num_blocks

    def _keep_budgets(self, now: float) -> None:
        for block, reason in self._idle.over_budget(now):
            self._evict(block, reason, now)

    def _evict(self, block: Block, reason: LossReason, now: float) -> None:
        self.num_evicted_blocks += 1
        self._forget(block, reason, now)

    def _forget(self, block: Block, reason: LossReason, now: float) -> None:
        """Lose a registered leaf, and remember that it is lost if it was full."""
        if block.block_hash is not None:
            age_s = now - block.last_used_at if block.ref_count == 0 else 0.0
            self._losses.record(block.block_hash, reason, now, age_s)
            self._removed.append(block.block_hash)
        self._unregister(block)

    def _unregister(self, block: Block) -> None:
        """Nothing finds the block any more; it is empty unless it is held."""
        if block.ref_count == 0:
            self._idle.empty(block)
        if self._idle.budgets.by_owner:
            self._idle.budgets.unregistered(block)
        self._tree.remove(block)
        block.owner, block.level = None, ONE_SHOT

    # -- registering: only after the KV is written --

    def register_full(
        self,
        block: Block,
        root: BlockHash,
        parent: Block | None,
        block_hash: BlockHash,
        token_ids: tuple[int, ...],
        owner: str | None = None,
    ) -> Block:
        """`block` now holds the KV of `token_ids` after `parent`. Returns the block to hold from now on. Mutates.

        If the same content is already stored, that block is returned with a reference added and `block`'s reference is
        dropped: every content is stored once. If it cannot be registered (its parent is not, or the hash collides with
        other content), `block` stays private to its holder.
        """
        if not self._tree.can_follow(root, parent):
            return block
        stored = self._tree.by_hash.get(block_hash)
        if stored is block:
            return block
        if stored is not None:
            if stored.parent is parent and stored.root == root and stored.token_ids == token_ids:
                self.touch([stored])
                self._abandon(block)
                return stored
            return block
        self._register(block, root, parent, token_ids, owner)
        self._tree.set_hash(block, block_hash)
        self._losses.forget(block_hash)
        return block

    def register_partial(
        self,
        block: Block,
        root: BlockHash,
        parent: Block | None,
        token_ids: tuple[int, ...],
        owner: str | None = None,
        *,
        is_final: bool = False,
    ) -> Block:
        """`block` holds the KV of `token_ids` (fewer than `block_size`) after `parent`; a holder may append. Mutates.

        A tail that another stored block already contains is not registered: it is free for reuse at once. A holder that
        appends nothing more (`is_final`) holds that other block instead, so that it counts as used with the request.
        Returns the block to hold from now on.
        """
        if not token_ids or not self._tree.can_follow(root, parent) or block.token_ids == token_ids:
            return block
        children = self._tree.children(root, parent)
        if children:
            other, length = children.longest_common_prefix(token_ids)
            if other is not None and other is not block and length == len(token_ids):
                return self._defer_to(other, block, is_final=is_final)
        self._register(block, root, parent, token_ids, owner)
        return block

    def _defer_to(self, other: Block, block: Block, *, is_final: bool) -> Block:
        """`other` is stored and has all that `block` has."""
        if is_final:
            self.touch([other])
            self._abandon(block)
            return other
        if block.is_registered:
            self._unregister(block)
        return block

    def _register(
        self, block: Block, root: BlockHash, parent: Block | None, token_ids: tuple[int, ...], owner: str | None
    ) -> None:
        if block.is_registered:
            self._unregister(block)
        for other in list(self._tree.neighbours(root, parent, token_ids)):
            # A free tail that the new block contains is of no more use to anybody.
            if other.ref_count == 0 and not other.is_full and token_ids[: len(other.token_ids)] == other.token_ids:
                self._unregister(other)
        self._tree.add(block, root, parent, token_ids)
        block.owner = owner if parent is None or parent.owner is None else parent.owner
        if self._idle.budgets.by_owner:
            self._idle.budgets.registered(block)

    def _abandon(self, block: Block) -> None:
        """Its holder takes a twin in place of it."""
        if block.is_registered:
            self._unregister(block)
        block.ref_count -= 1
        if block.ref_count == 0:
            self._idle.add([block])

    # -- whole pool --

    def take_removed(self) -> list[BlockHash]:
        """BlockRemoved events since the last call, leaves before what they follow. Mutates."""
        removed, self._removed = self._removed, []
        return removed

    def leaves(self) -> list[Block]:
        """The last full block of every stored path. O(blocks)."""
        return self._tree.leaves()

    def chain_to(self, block: Block) -> tuple[BlockHash, list[BlockHash]] | None:
        """(root, hashes from the first block on) of the path to a full block; None if it is stored no more."""
        return self._tree.chain_to(block)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every invariant of this package's docstrings holds. O(blocks)."""
        for block in self.blocks:
            assert block.ref_count >= 0, f"{block}: negative ref_count"
            assert block.is_registered or (block.owner is None and block.level == ONE_SHOT), f"{block}: leftovers"
            if block.parent is not None:
                assert block.ref_count == 0 or block.parent.ref_count > 0, f"{block}: held, but its parent is not"
                assert block.level <= block.parent.level, f"{block}: on a higher level than its parent"
        self._tree.check_integrity(self.blocks)
        self._idle.check_integrity(self.blocks)
        self._pins.check_integrity(self.blocks)
